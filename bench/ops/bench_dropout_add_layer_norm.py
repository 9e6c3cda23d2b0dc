"""Dropout, residual addition and layer norm of real tokens in one op, against three modules on the padded batch."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

import earlybert_kernels as ek

from . import roofline
from .cases import Case, Problem
from .subject import Subject, Tensors

_EPS = 1e-12


class DropoutAddLayerNorm(Subject):
    """Two tensors `(T, E)` and the norm's parameters. Pruning does not change it."""

    op = "dropout_add_layer_norm"
    units = ("dense",)

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        hidden = problem.sizes.hidden
        self.tokens = {name: self.random(self.num_tokens, hidden) for name in ("x", "residual")}
        self.weights = {"weight": 1 + self.random(hidden, scale=0.1), "bias": self.random(hidden, scale=0.1)}

    def packed(self, inputs: Tensors, dropout_p: float, backend: str) -> Tensor:
        """See `Subject.packed`."""
        return ek.ops.dropout_add_layer_norm(**inputs, dropout_p=dropout_p, eps=_EPS, backend=backend)

    def padded(self, inputs: Tensors, dropout_p: float) -> Tensor:
        """See `Subject.padded`."""
        x = F.dropout(inputs["x"], dropout_p, training=True) + inputs["residual"]
        return F.layer_norm(x, x.shape[-1:], inputs["weight"], inputs["bias"], _EPS)

    def work(self) -> roofline.WorkByMode:
        """See `Subject.work`."""
        problem = self.problem
        return roofline.dropout_add_layer_norm(self.num_tokens, problem.sizes.hidden, problem.dtype.itemsize)


SUBJECT = DropoutAddLayerNorm


def test_dropout_add_layer_norm(case: Case, measure: Callable) -> None:
    """One row."""
    measure(SUBJECT, case)
