"""The best of the models that are evaluated while training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class BestModel:
    """Keeps the weights that did best by one metric, and says when no better ones are to be expected.

    Attributes:
        metric: its name among an evaluation's results.
        step: optimizer steps after which the best was evaluated; None before the first evaluation.
        value: its metric.
    """

    def __init__(self, metric: str, *, less_is_better: bool, patience: int | None) -> None:
        """
        Args:
            metric: what decides.
            less_is_better: whether it is a loss or an error.
            patience: evaluations in a row that may bring nothing better; None for as many as there are.
        """
        self.metric = metric
        self.step: int | None = None
        self.value: float | None = None
        self._less_is_better = less_is_better
        self._patience = patience
        self._weights: dict[str, torch.Tensor] = {}
        self._in_vain = 0

    @property
    def is_past(self) -> bool:
        """Whether so many evaluations in a row brought nothing better that training had better end."""
        return self._patience is not None and self._in_vain >= self._patience

    def add(self, step: int, results: Mapping[str, float], model: nn.Module) -> None:
        """Takes note of an evaluation; of several that are equal the first is the best.

        Args:
            step: optimizer steps of training so far.
            results: the evaluation's metrics by name.
            model: what was evaluated.
        """
        value = results[self.metric]
        if self.value is not None and not (value < self.value if self._less_is_better else value > self.value):
            self._in_vain += 1
            return
        self.step, self.value, self._in_vain = step, value, 0
        self._weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}

    def restore(self, model: nn.Module) -> None:
        """Gives a model the best weights."""
        model.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs."""
        return {"step": self.step, "value": self.value, "weights": self._weights, "in_vain": self._in_vain}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state_dict` gave."""
        self.step, self.value = state["step"], state["value"]
        self._weights, self._in_vain = state["weights"], state["in_vain"]
