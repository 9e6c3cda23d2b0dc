"""Dropping a batch's padding and putting it back, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def unpad(tensors: Sequence[Tensor], index: Tensor) -> tuple[Tensor, ...]:
    """The definition of `ops.unpad`, which documents the arguments."""
    return tuple(t.reshape(t.shape[0] * t.shape[1], *t.shape[2:]).index_select(0, index) for t in tensors)


def pad(tensors: Sequence[Tensor], index: Tensor, batch: int, seq: int) -> tuple[Tensor, ...]:
    """The definition of `ops.pad`, which documents the arguments."""
    padded = (t.new_zeros(batch * seq, *t.shape[1:]).index_copy(0, index, t) for t in tensors)
    return tuple(t.view(batch, seq, *t.shape[1:]) for t in padded)
