"""Masked multi-head attention over packed sequences, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    cu_seqlens_q: Tensor | None = None,
    max_seqlen_q: int | None = None,
    head_mask: Tensor | None = None,
    head_gates: Tensor | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """The definition of `ops.attention`, which documents the arguments: pad, attend, un-pad."""
    if head_mask is not None:
        kept = head_mask.nonzero().squeeze(1)
        context = attention(
            q[:, kept],
            k[:, kept],
            v[:, kept],
            cu_seqlens,
            max_seqlen,
            cu_seqlens_q=cu_seqlens_q,
            max_seqlen_q=max_seqlen_q,
            head_gates=None if head_gates is None else head_gates[kept],
            dropout_p=dropout_p,
            softmax_scale=softmax_scale,
            window=window,
        )
        return context.new_zeros(q.shape).index_copy(1, kept, context)

    keys = _Padding(cu_seqlens, max_seqlen, k.shape[0])
    queries = keys if cu_seqlens_q is None or max_seqlen_q is None else _Padding(cu_seqlens_q, max_seqlen_q, q.shape[0])
    padded = queries.pad(q), keys.pad(k), keys.pad(v)
    if all(t.numel() for t in padded):
        mask, some = keys.mask(), None
        if window is not None:
            near = _near(padded[0].shape[2], padded[1].shape[2], window, q.device)
            mask = near if mask is None else mask & near
            some = mask.any(-1, keepdim=True)
            mask = mask | ~some  # a query without keys is asked to attend to all: its result is not used
        context = F.scaled_dot_product_attention(*padded, attn_mask=mask, dropout_p=dropout_p, scale=softmax_scale)
        if some is not None:
            context = torch.where(some, context, 0.0)
    else:  # no query, or no key: zeros for every query. Not every release of torch survives being asked for that.
        context = padded[0] @ padded[1].mT @ padded[2]
    context = queries.unpad(context)
    if head_gates is not None:
        context = (context * head_gates.unsqueeze(-1)).to(context.dtype)
    return context


def _near(queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """Which places are at most `window` apart, `(queries, keys)`."""
    return (torch.arange(queries, device=device)[:, None] - torch.arange(keys, device=device)).abs() <= window


class _Padding:
    """Moves heads between packed `(T, H, D)` and padded `(B, H, S, D)`; no host synchronisation."""

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int, tokens: int) -> None:
        self.batch, self.seq, self.tokens = cu_seqlens.numel() - 1, max_seqlen, tokens
        self.full = tokens == self.batch * max_seqlen  # no sequence is shorter than the longest
        if not self.full:
            starts = cu_seqlens[:-1].long()
            self.lengths = cu_seqlens[1:].long() - starts
            shift = torch.arange(self.batch, device=starts.device) * max_seqlen - starts
            self.rows = torch.arange(tokens, device=starts.device)
            self.rows = self.rows + torch.repeat_interleave(shift, self.lengths, output_size=tokens)

    def pad(self, x: Tensor) -> Tensor:
        heads, size = x.shape[1:]
        if not self.full:
            x = x.new_zeros(self.batch * self.seq, heads, size).index_copy(0, self.rows, x)
        return x.view(self.batch, self.seq, heads, size).transpose(1, 2)

    def unpad(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2).reshape(self.batch * self.seq, x.shape[1], x.shape[3])
        return x if self.full else x.index_select(0, self.rows)

    def mask(self) -> Tensor | None:
        """True where a key is a real token, `(B, 1, 1, S)`."""
        if self.full:
            return None
        positions = torch.arange(self.seq, device=self.lengths.device)
        return (positions < self.lengths[:, None])[:, None, None, :]
