"""The feed-forward sublayer on real tokens, against the modules of a stock BertLayer on the padded batch."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

import earlybert_kernels as ek

from ..shapes import DROPOUT
from .bench_feed_forward import FeedForward
from .cases import Case, Problem
from .subject import Tensors

_EPS = 1e-12


class FeedForwardSublayer(FeedForward):
    """The block's tensors, and the norm's parameters. The least work is the block's: no other tensor has to move."""

    op = "feed_forward_sublayer"
    dropout = DROPOUT

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        hidden = problem.sizes.hidden
        self.weights["norm_weight"] = 1 + self.random(hidden, scale=0.1)
        self.weights["norm_bias"] = self.random(hidden, scale=0.1)
        self.active = None if self.neuron_mask is None else self.neuron_mask.nonzero().squeeze(1)

    def packed(self, inputs: Tensors, dropout_p: float, backend: str) -> Tensor:
        """See `Subject.packed`."""
        return ek.ops.feed_forward_sublayer(
            **inputs, active_neurons=self.active, dropout_p=dropout_p, eps=_EPS, backend=backend
        )

    def padded(self, inputs: Tensors, dropout_p: float) -> Tensor:
        """See `Subject.padded`; masked neurons are computed and multiplied by 0."""
        h = F.dropout(super().padded(inputs, dropout_p), dropout_p, training=True) + inputs["x"]
        return F.layer_norm(h, h.shape[-1:], inputs["norm_weight"], inputs["norm_bias"], _EPS)


SUBJECT = FeedForwardSublayer


def test_feed_forward_sublayer(case: Case, measure: Callable) -> None:
    """One row."""
    measure(SUBJECT, case)
