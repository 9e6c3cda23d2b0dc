"""torch.autocast for ops that torch does not know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """What matrix products take in the tensors' place: float32 ones cast to autocast's dtype, where it is on."""
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if t is not None and t.dtype == torch.float32 else t for t in tensors)
