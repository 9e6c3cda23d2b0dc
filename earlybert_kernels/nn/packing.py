"""Packed batches: the real tokens of a padded batch, one sequence behind the other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Packing(NamedTuple):
    """Where the real tokens of a padded `(B, S)` batch are.

    Attributes:
        batch, seq: B and S of the padded batch.
        index: int64 `(T,)`, position of each real token in the flattened batch; None when nothing is padding.
        cu_seqlens: int32 `(B + 1,)`, first packed row of each sequence, and T.
        max_seqlen: real tokens of the longest sequence.
    """

    batch: int
    seq: int
    index: Tensor | None
    cu_seqlens: Tensor
    max_seqlen: int

    def pack(self, x: Tensor) -> Tensor:
        """`(B, S, ...)` -> `(T, ...)`: drops the padding."""
        x = x.reshape(self.batch * self.seq, *x.shape[2:])
        return x if self.index is None else x.index_select(0, self.index)

    def pad(self, x: Tensor) -> Tensor:
        """`(T, ...)` -> `(B, S, ...)`: puts zeros where padding was."""
        if self.index is not None:
            x = x.new_zeros(self.batch * self.seq, *x.shape[1:]).index_copy(0, self.index, x)
        return x.view(self.batch, self.seq, *x.shape[1:])


def make_packing(mask: Tensor | None, batch: int, seq: int, device: torch.device) -> Packing:
    """The packing of a `(B, S)` batch.

    Args:
        mask: `(B, S)`, non-zero at real tokens, or None when all are; real tokens need not be contiguous.
        batch, seq, device: B, S and the batch's device.
    """
    if mask is not None:
        mask = mask != 0
        lengths = mask.sum(1, dtype=torch.int32)
        index = mask.reshape(-1).nonzero().squeeze(1)
        if index.numel() < batch * seq:
            cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
            return Packing(batch, seq, index, cu_seqlens, int(lengths.max()))
    cu_seqlens = torch.arange(0, (batch + 1) * seq, seq, dtype=torch.int32, device=device)
    return Packing(batch, seq, None, cu_seqlens, seq)
