"""The feed-forward block on real tokens, against two linear layers on the padded batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import earlybert_kernels as ek

from . import roofline
from .cases import Case, Problem
from .subject import Subject, Tensors


class FeedForward(Subject):
    """Tokens `(T, E)` and the weights of F neurons; what is left of a layer's neurons when masked or compact."""

    op = "feed_forward"
    dropout = 0.0  # BERT's is behind the block, in the op that adds and normalises

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        sizes = problem.sizes
        kept = sizes.ticket().neurons[0]
        neurons = len(kept) if problem.unit == "compact" else sizes.neurons
        self.kept_neurons = sizes.neurons if problem.unit == "dense" else len(kept)
        self.kept_share = self.kept_neurons / sizes.neurons
        self.tokens = {"x": self.random(self.num_tokens, sizes.hidden)}
        self.weights = {
            "w_in": self.random(neurons, sizes.hidden, scale=sizes.hidden**-0.5),
            "b_in": self.random(neurons, scale=0.1),
            "w_out": self.random(sizes.hidden, neurons, scale=neurons**-0.5),
            "b_out": self.random(sizes.hidden, scale=0.1),
        }
        self.neuron_mask = None
        if problem.unit == "masked":
            self.neuron_mask = torch.zeros(neurons, dtype=torch.bool, device=problem.device)
            self.neuron_mask[kept] = True

    def packed(self, inputs: Tensors, dropout_p: float, backend: str) -> Tensor:
        """See `Subject.packed`."""
        return ek.ops.feed_forward(**inputs, neuron_mask=self.neuron_mask, backend=backend)

    def padded(self, inputs: Tensors, dropout_p: float) -> Tensor:
        """See `Subject.padded`; masked neurons are computed and multiplied by 0."""
        h = F.gelu(F.linear(inputs["x"], inputs["w_in"], inputs["b_in"]))
        if self.neuron_mask is not None:
            h = h * self.neuron_mask
        return F.linear(h, inputs["w_out"], inputs["b_out"])

    def work(self) -> roofline.WorkByMode:
        """See `Subject.work`."""
        problem = self.problem
        return roofline.feed_forward(self.num_tokens, problem.sizes.hidden, self.kept_neurons, problem.dtype.itemsize)


SUBJECT = FeedForward


def test_feed_forward(case: Case, measure: Callable) -> None:
    """One row."""
    measure(SUBJECT, case)
