"""Outputs that lie in poisoned memory: what a kernel leaves out, or writes beside them, shows."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

_GUARD = 8  # values before and behind each tensor, so that rows stay aligned as they are without


class Guarded:
    """The floating tensors of `torch.empty` and `torch.empty_like`, in buffers of NaN under pytest's `monkeypatch`."""

    def __init__(self, monkeypatch) -> None:
        self._buffers: list[Tensor] = []
        empty, self._full = torch.empty, torch.full

        def allocate(*shape, dtype=None, device=None):
            shape = torch.Size(shape[0] if not isinstance(shape[0], int) else shape)
            if not (dtype or torch.get_default_dtype()).is_floating_point:
                return empty(shape, dtype=dtype, device=device)
            buffer = self._full((shape.numel() + 2 * _GUARD,), float("nan"), dtype=dtype, device=device)
            self._buffers.append(buffer)
            return buffer[_GUARD:-_GUARD].view(shape)

        monkeypatch.setattr(torch, "empty", allocate)
        monkeypatch.setattr(torch, "empty_like", lambda t: allocate(t.shape, dtype=t.dtype, device=t.device))

    def check(self, count: int) -> None:
        """Raises unless there are `count` tensors, fully written, with nothing written around them."""
        assert len(self._buffers) == count
        for buffer in self._buffers:
            assert buffer[:_GUARD].isnan().all() and buffer[-_GUARD:].isnan().all()
            assert not buffer[_GUARD:-_GUARD].isnan().any()


@contextlib.contextmanager
def poisoned_memory():
    """torch.empty returns NaN within."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before)
