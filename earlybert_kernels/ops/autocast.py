"""torch.autocast for ops that torch does not know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends.backend import Backend


def factors(backend: Backend, *tensors: Tensor | None) -> tuple[tuple[Any, ...], bool]:
    """What a backend's kernels are given of what products take, and whether they are to round it to bfloat16.

    That is float32, where autocast to bfloat16 is on, or tensors are bfloat16 themselves, and the backend rounds while
    it multiplies.
    """
    present = [t for t in tensors if t is not None]
    low = any(t.dtype == torch.bfloat16 for t in present) or torch.is_autocast_enabled(present[0].device.type)
    if backend.rounds_factors and low:
        return widened(backend, *tensors), True
    return autocast(*tensors), False


def widened(backend: Backend, *tensors: Tensor | None) -> tuple[Any, ...]:
    """What a backend's kernels are given of other tensors: float32 for bfloat16, if it rounds while it multiplies."""
    if not backend.rounds_factors:
        return tensors
    return tuple(t.float() if t is not None and t.dtype == torch.bfloat16 else t for t in tensors)


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """What matrix products take in the tensors' place: float32 ones cast to autocast's dtype, where it is on."""
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if t is not None and t.dtype == torch.float32 else t for t in tensors)
