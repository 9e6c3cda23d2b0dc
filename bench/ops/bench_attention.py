"""Attention over packed sequences, against what transformers does on padded ones."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_bidirectional_mask

import earlybert_kernels as ek

from .. import varlen
from . import roofline
from .cases import VARLEN, Case, Problem
from .subject import Subject, Tensors

#: All that transformers' function reads of the module that calls it.
_MODULE = SimpleNamespace(is_causal=False)


class Attention(Subject):
    """Queries, keys and values `(T, H, D)`; what is left of a layer's heads when masked or compact."""

    op = "attention"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        sizes = problem.sizes
        kept = sizes.ticket().heads[0]
        heads = len(kept) if problem.unit == "compact" else sizes.heads
        self.kept_heads = sizes.heads if problem.unit == "dense" else len(kept)
        self.kept_share = self.kept_heads / sizes.heads
        self.tokens = {name: self.random(self.num_tokens, heads, sizes.head_size) for name in ("q", "k", "v")}
        self.head_mask = None
        if problem.unit == "masked":
            self.head_mask = torch.zeros(heads, dtype=torch.bool, device=problem.device)
            self.head_mask[kept] = True
        config = sizes.config()
        config._attn_implementation = "sdpa"
        embeddings = torch.empty(*self.padding_mask.shape, sizes.hidden, dtype=problem.dtype, device=problem.device)
        # A model makes it once a batch, for all layers: it is not timed. None where nothing is padding.
        self.attention_mask = create_bidirectional_mask(config, embeddings, self.padding_mask.long())

    def packed(self, inputs: Tensors, dropout_p: float, backend: str) -> Tensor:
        """See `Subject.packed`; torch's own attention of packed sequences is as good as a backend."""
        packing = self.packing
        if backend in VARLEN:
            return varlen.attention(
                backend, *inputs.values(), packing.cu_seqlens, packing.max_seqlen, dropout_p=dropout_p
            )
        return ek.ops.attention(
            **inputs,
            cu_seqlens=packing.cu_seqlens,
            max_seqlen=packing.max_seqlen,
            head_mask=self.head_mask,
            dropout_p=dropout_p,
            backend=backend,
        )

    def padded(self, inputs: Tensors, dropout_p: float) -> Tensor:
        """See `Subject.padded`; masked heads are computed and multiplied by 0."""
        q, k, v = (tensor.transpose(1, 2) for tensor in inputs.values())
        out, _ = sdpa_attention_forward(
            _MODULE, q, k, v, self.attention_mask, dropout=dropout_p, scaling=self.problem.sizes.head_size**-0.5
        )
        return out if self.head_mask is None else out * self.head_mask[:, None]

    def work(self) -> roofline.WorkByMode:
        """See `Subject.work`."""
        itemsize = self.problem.dtype.itemsize
        return roofline.attention(self.lengths, self.kept_heads, self.problem.sizes.head_size, itemsize)


SUBJECT = Attention


def test_attention(case: Case, measure: Callable) -> None:
    """One row."""
    measure(SUBJECT, case)
