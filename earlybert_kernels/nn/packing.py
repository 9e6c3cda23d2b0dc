"""Packed batches: the real tokens of a batch, one sequence behind the other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .. import ops


class Packing(NamedTuple):
    """Where the real tokens of a batch are, and where its sequences.

    The batch is `(B, S)`, one sequence a row, or `(1, T)`, packed already.

    Attributes:
        batch, seq: the batch's two dimensions.
        index: int64 `(T,)`, position of each real token in the flattened batch, rising; None when nothing is padding.
        cu_seqlens: int32 `(sequences + 1,)`, first packed row of each sequence, and T.
        max_seqlen: at least the real tokens of the longest sequence.
        starts_with_padding: whether a sequence's row begins with padding.
        has_empty: whether a sequence is known to hold no token.
        has_gaps: whether padding stands between real tokens of a row.
    """

    batch: int
    seq: int
    index: Tensor | None  # type: ignore[assignment]  # a tuple has a method of that name
    cu_seqlens: Tensor
    max_seqlen: int
    starts_with_padding: bool = False
    has_empty: bool = False
    has_gaps: bool = False

    @classmethod
    def from_mask(cls, mask: Tensor | None, batch: int, seq: int, device: torch.device) -> Packing:
        """The packing of a `(B, S)` batch.

        The host waits once for the device that the mask is on, to learn how many tokens are real: not at all for a
        mask that has stayed on the CPU.

        Args:
            mask: `(B, S)`, on any device, non-zero at real tokens, or None when all are; real tokens need not be
                contiguous.
            batch, seq, device: B, S and the batch's device.
        """
        if mask is not None and mask.is_cpu and not torch.compiler.is_compiling() and mask.all():
            mask = None  # a single sentence, say: it is spared the other questions
        if mask is not None and mask.numel():
            mask = mask != 0
            lengths = mask.sum(1, dtype=torch.int32)
            begins = mask[:, 0] + (mask[:, 1:] & ~mask[:, :-1]).sum(1)  # of runs of real tokens
            counts = torch.stack([lengths.sum(), lengths.max(), lengths.min(), (~mask[:, 0]).sum(), begins.max()])
            tokens, longest, shortest, empty_starts, runs = counts.tolist()
            if tokens < batch * seq:
                index = torch.nonzero_static(mask.reshape(-1), size=tokens).squeeze(1)
                cu_seqlens = functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
                index, cu_seqlens = (t.to(device, non_blocking=True) for t in (index, cu_seqlens))
                return cls(batch, seq, index, cu_seqlens, longest, empty_starts > 0, shortest == 0, runs > 1)
        cu_seqlens = torch.arange(0, (batch + 1) * seq, seq, dtype=torch.int32, device=device)
        return cls(batch, seq, None, cu_seqlens, seq)

    @classmethod
    def from_offsets(cls, cu_seqlens: Tensor, max_seqlen: int, tokens: int) -> Packing:
        """The packing of a batch that is `(1, tokens)` already. Nothing waits for the device.

        Args:
            cu_seqlens: int32 `(sequences + 1,)`, from 0 to `tokens`.
            max_seqlen: no sequence is longer.
            tokens: T.
        """
        return cls(1, tokens, None, cu_seqlens, max_seqlen)

    @property
    def sequences(self) -> int:
        """Sequences in the batch."""
        return self.cu_seqlens.shape[0] - 1

    def pack(self, *padded: Tensor) -> tuple[Tensor, ...]:
        """`(B, S, ...)` or `(1, T, ...)` -> `(T, ...)`, each: drops the padding."""
        if self.index is not None:
            return ops.unpad(padded, self.index)
        return tuple(x.reshape(self.batch * self.seq, *x.shape[2:]) for x in padded)

    def pad(self, *packed: Tensor) -> tuple[Tensor, ...]:
        """`(T, ...)` -> `(B, S, ...)` or `(1, T, ...)`, each, as the batch came: puts zeros where padding was."""
        if self.index is not None:
            return ops.pad(packed, self.index, self.batch, self.seq)
        return tuple(x.view(self.batch, self.seq, *x.shape[1:]) for x in packed)

    def first_tokens(self, x: Tensor) -> Tensor:
        """`(T, ...)` -> `(sequences, ...)`: the first real token of each sequence."""
        return x.index_select(0, self.cu_seqlens[:-1])

    def means(self, x: Tensor) -> Tensor:
        """`(T, E)` -> `(sequences, E)`: the mean of each sequence's tokens."""
        _, sequence = self._token_sequences()
        lengths = self.cu_seqlens.diff().unsqueeze(1)
        return x.new_zeros(self.sequences, x.shape[1]).index_add(0, sequence, x) / lengths

    def positions(self) -> Tensor:
        """int64 `(T,)`: the place of each token in its own sequence."""
        tokens, sequence = self._token_sequences()
        return tokens - self.cu_seqlens.index_select(0, sequence)

    def rows(self, x: Tensor, fill: float) -> Tensor:
        """`(T, ...)` -> `(sequences, max_seqlen, ...)`: each sequence from the start of a row of its own.

        Args:
            x: one entry a packed token.
            fill: what stands behind the end of a sequence.
        """
        tokens, sequence = self._token_sequences()
        places = tokens - self.cu_seqlens.index_select(0, sequence) + sequence * self.max_seqlen
        padded = x.new_full((self.sequences * self.max_seqlen, *x.shape[1:]), fill)
        return padded.index_copy(0, places, x).view(self.sequences, self.max_seqlen, *x.shape[1:])

    def _token_sequences(self) -> tuple[Tensor, Tensor]:
        """int64 `(T,)` each: the numbers of all packed tokens, and of the sequence that each belongs to."""
        count = self.seq * self.batch if self.index is None else self.index.shape[0]
        tokens = torch.arange(count, device=self.cu_seqlens.device)
        return tokens, torch.bucketize(tokens, self.cu_seqlens[1:], right=True)
