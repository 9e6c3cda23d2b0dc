"""Decoder and loss on the labelled tokens, against all logits of the padded batch, as BertForMaskedLM computes them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import earlybert_kernels as ek

from ..shapes import VOCABULARY
from . import roofline
from .cases import Case, Problem
from .subject import Subject, Tensors

#: Of the real tokens, in BERT's pre-training.
_LABELLED_SHARE = 0.15
_IGNORED = -100


class MaskedLMLoss(Subject):
    """What the decoder reads, `(T, E)`, its weights, and a label at 15% of the tokens. Pruning does not change it."""

    op = "masked_lm_loss"
    units = ("dense",)
    dropout = 0.0  # there is none behind the encoder

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        hidden = problem.sizes.hidden
        self.tokens = {"hidden": self.random(self.num_tokens, hidden)}
        self.weights = {
            "weight": self.random(VOCABULARY, hidden, scale=hidden**-0.5),
            "bias": self.random(VOCABULARY, scale=0.1),
        }
        self.num_labelled = max(1, round(_LABELLED_SHARE * self.num_tokens))
        rows = torch.randperm(self.num_tokens, generator=self._generator)[: self.num_labelled]
        labels = torch.full((self.num_tokens,), _IGNORED)
        labels[rows] = torch.randint(VOCABULARY, rows.shape, generator=self._generator)
        self.labels = labels.to(problem.device)
        padding = torch.full(self.padding_mask.shape, _IGNORED, device=problem.device)
        self.padded_labels = padding.masked_scatter(self.padding_mask, self.labels)

    def packed(self, inputs: Tensors, dropout_p: float, backend: str) -> Tensor:
        """See `Subject.packed`."""
        return ek.ops.masked_lm_loss(**inputs, labels=self.labels, ignore_index=_IGNORED, backend=backend)

    def padded(self, inputs: Tensors, dropout_p: float) -> Tensor:
        """See `Subject.padded`."""
        logits = F.linear(inputs["hidden"], inputs["weight"], inputs["bias"])
        return F.cross_entropy(logits.view(-1, VOCABULARY), self.padded_labels.view(-1), ignore_index=_IGNORED)

    def work(self) -> roofline.WorkByMode:
        """See `Subject.work`."""
        hidden, itemsize = self.problem.sizes.hidden, self.problem.dtype.itemsize
        return roofline.masked_lm_loss(self.num_tokens, self.num_labelled, hidden, VOCABULARY, itemsize)


SUBJECT = MaskedLMLoss


def test_masked_lm_loss(case: Case, measure: Callable) -> None:
    """One row."""
    measure(SUBJECT, case)
