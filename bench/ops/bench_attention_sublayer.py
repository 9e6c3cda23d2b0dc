"""The attention sublayer on real tokens, against the modules of a stock BertLayer on the padded batch."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

import earlybert_kernels as ek

from . import roofline
from .bench_attention import Attention
from .cases import Case, Problem
from .subject import Tensors

_EPS = 1e-12


class AttentionSublayer(Attention):
    """Tokens `(T, E)`, four linear layers and a norm; what is left of the heads when masked or compact.

    The keys' bias is no input: a softmax does not change when all its scores do, so that its gradient is rounding.
    """

    op = "attention_sublayer"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        sizes = problem.sizes
        size = self.tokens["q"][0].numel()
        self.tokens = {"x": self.random(self.num_tokens, sizes.hidden)}
        for name in ("q", "k", "v"):
            self.weights[f"w_{name}"] = self.random(size, sizes.hidden, scale=sizes.hidden**-0.5)
            self.weights[f"b_{name}"] = self.random(size, scale=0.1)
        self.key_bias = self.weights.pop("b_k")
        self.weights["w_out"] = self.random(sizes.hidden, size, scale=size**-0.5)
        self.weights["b_out"] = self.random(sizes.hidden, scale=0.1)
        self.weights["norm_weight"] = 1 + self.random(sizes.hidden, scale=0.1)
        self.weights["norm_bias"] = self.random(sizes.hidden, scale=0.1)
        self.active = None if self.head_mask is None else self.head_mask.nonzero().squeeze(1)

    def packed(self, inputs: Tensors, dropout_p: float, backend: str) -> Tensor:
        """See `Subject.packed`."""
        return ek.ops.attention_sublayer(
            **inputs,
            b_k=self.key_bias.to(inputs["w_k"].dtype),
            cu_seqlens=self.packing.cu_seqlens,
            max_seqlen=self.packing.max_seqlen,
            head_size=self.problem.sizes.head_size,
            active_heads=self.active,
            attention_dropout_p=dropout_p,
            dropout_p=dropout_p,
            eps=_EPS,
            backend=backend,
        )

    def padded(self, inputs: Tensors, dropout_p: float) -> Tensor:
        """See `Subject.padded`; masked heads are computed and multiplied by 0."""
        x, biases = inputs["x"], {"b_k": self.key_bias, **inputs}
        shape = (*x.shape[:2], -1, self.problem.sizes.head_size)
        heads = {n: F.linear(x, inputs[f"w_{n}"], biases[f"b_{n}"]).view(shape) for n in ("q", "k", "v")}
        context = super().padded(heads, dropout_p).flatten(2)
        h = F.dropout(F.linear(context, inputs["w_out"], inputs["b_out"]), dropout_p, training=True) + x
        return F.layer_norm(h, h.shape[-1:], inputs["norm_weight"], inputs["norm_bias"], _EPS)

    def work(self) -> roofline.WorkByMode:
        """See `Subject.work`."""
        sizes = self.problem.sizes
        shape = (self.kept_heads, sizes.head_size, self.problem.dtype.itemsize)
        return roofline.attention_sublayer(self.lengths, sizes.hidden, *shape)


SUBJECT = AttentionSublayer


def test_attention_sublayer(case: Case, measure: Callable) -> None:
    """One row."""
    measure(SUBJECT, case)
