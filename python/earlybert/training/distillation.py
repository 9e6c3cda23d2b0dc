"""Training a model by what another says beside what is right.

Of logits as Hinton et al. (arXiv 1503.02531), of hidden states as TinyBERT (Jiao et al., arXiv 1909.10351, equation 8;
a ticket's are as wide as its teacher's, so that nothing stands between them).
"""

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
        of_hidden_states: whether the distance is that of logits and that of hidden states, in sum.
    """

    teacher: PreTrainedModel
    share: float
    temperature: float
    of_hidden_states: bool = False

    @property
    def asked_for(self) -> dict[str, Any]:
        """What both models are asked for beside the batch."""
        return {"output_hidden_states": True} if self.of_hidden_states else {}

    def loss(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """The loss of a batch, 0-dimensional.

        Args:
            outputs: the trained model's: `loss`, `logits` `(batch, labels)`, and what was `asked_for`.
            batch: what it was given.
        """
        with torch.no_grad():
            expected = self.teacher(**batch, **self.asked_for)
        kind = self.teacher.config.problem_type
        distance = _distance(outputs.logits.float(), expected.logits.float(), kind, self.temperature)
        if self.of_hidden_states:
            pairs = zip(outputs.hidden_states[1:], expected.hidden_states[1:], strict=True)
            distance = distance + _mean_square([a.float() - b.float() for a, b in pairs], batch.get("attention_mask"))
        return (1 - self.share) * outputs.loss + self.share * distance


def _mean_square(differences: list[Tensor], mask: Tensor | None) -> Tensor:
    """Over all layers' hidden states of real tokens: `(B, S, E)` with a mask `(B, S)`, or packed without one."""
    kept = torch.stack(differences)
    return (kept if mask is None else kept[:, mask.bool()]).square().mean()


def _distance(logits: Tensor, expected: Tensor, kind: str | None, temperature: float) -> Tensor:
    """Mean squared error of numbers, cross-entropy of several labels, Kullback-Leibler divergence of classes."""
    if kind == "regression":
        return functional.mse_loss(logits, expected)
    if kind == "multi_label_classification":
        probabilities = (expected / temperature).sigmoid()
        return functional.binary_cross_entropy_with_logits(logits / temperature, probabilities) * temperature**2
    own, other = ((values / temperature).log_softmax(dim=-1) for values in (logits, expected))
    return functional.kl_div(own, other, reduction="batchmean", log_target=True) * temperature**2
