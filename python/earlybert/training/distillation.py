"""Training a model by what another says beside what is right (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Distillation:
    """A loss made of the task's own and of the distance to a teacher.

    Attributes:
        teacher: takes the batches of the model that is trained, on the same device; its config says the kind of labels,
            by transformers' `problem_type`.
        share: of the distance in the loss, 0 to 1; the rest is the task's own.
        temperature: what logits are divided by; the distance is multiplied by its square, as gradients get smaller by
            that. Of no account for numbers.
    """

    teacher: PreTrainedModel
    share: float
    temperature: float

    def loss(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """The loss of a batch, 0-dimensional.

        Args:
            outputs: the trained model's: `loss`, and `logits` `(batch, labels)`.
            batch: what it was given.
        """
        with torch.no_grad():
            expected = self.teacher(**batch).logits
        kind = self.teacher.config.problem_type
        distance = _distance(outputs.logits.float(), expected.float(), kind, self.temperature)
        return (1 - self.share) * outputs.loss + self.share * distance


def _distance(logits: Tensor, expected: Tensor, kind: str | None, temperature: float) -> Tensor:
    """Mean squared error of numbers, cross-entropy of several labels, Kullback-Leibler divergence of classes."""
    if kind == "regression":
        return functional.mse_loss(logits, expected)
    if kind == "multi_label_classification":
        probabilities = (expected / temperature).sigmoid()
        return functional.binary_cross_entropy_with_logits(logits / temperature, probabilities) * temperature**2
    own, other = ((values / temperature).log_softmax(dim=-1) for values in (logits, expected))
    return functional.kl_div(own, other, reduction="batchmean", log_target=True) * temperature**2
