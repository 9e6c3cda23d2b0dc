"""The search around somebody's training: gates at its beginning, a look after each step, a ticket at its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

import earlybert_kernels as ek

from .detector import EarlyBirdDetector, default_interval
from .drawing import Masks, draw, draw_masks


@dataclass(frozen=True)
class SearchSettings:
    """When the ticket is drawn, and what of.

    Attributes:
        max_steps: optimizer steps after which the ticket is drawn in any case.
        head_ratio: share of the heads of each layer that are dropped.
        neuron_ratio: share of all neurons that are dropped.
        interval: steps between two looks at the ticket; None for `default_interval`.
        threshold: distance, as a share of chance level, below which a ticket is at rest.
        patience: looks in a row at which it has to be.
        min_share: share of `max_steps` before which no ticket is drawn.
    """

    max_steps: int
    head_ratio: float = 1 / 3
    neuron_ratio: float = 0.4
    interval: int | None = None
    threshold: float = 0.1
    patience: int = 3
    min_share: float = 0.25


class SearchStage:
    """EarlyBERT's search (arXiv 2101.00063, sections 3.1 and 3.2) in a training loop of any kind.

        search = SearchStage(model, SearchSettings(max_steps=200))  # makes the gates
        ...                          # build the optimizer, train with an L1 penalty on `search.gates`, and
        if search.after_step(step):  # after every step: is the ticket at rest?
            ...                      # stop
        ticket = search.draw()
        search.rewind()              # the weights of the beginning, without gates; `ek.compact(model, ticket)`

    Attributes:
        gates: the model's gates, of heads by layer and then of neurons by layer.
    """

    def __init__(self, model: nn.Module, settings: SearchSettings) -> None:
        """
        Args:
            model: a BERT on its device, stock or converted; it gets gates.
            settings: when the ticket is drawn.
        """
        self.settings = settings
        self._model = model
        self._start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        ek.enable_gates(model)
        self.head_gates, self.neuron_gates = ek.head_gates(model), ek.neuron_gates(model)
        self._detector = EarlyBirdDetector(
            [len(gates) for gates in self.head_gates],
            [len(gates) for gates in self.neuron_gates],
            interval=settings.interval or default_interval(settings.max_steps),
            threshold=settings.threshold,
            patience=settings.patience,
            min_steps=round(settings.min_share * settings.max_steps),
        )

    @property
    def gates(self) -> list[nn.Parameter]:
        """All gates of the model."""
        return [*self.head_gates, *self.neuron_gates]

    def after_step(self, step: int) -> bool:
        """Whether the ticket is at rest after so many optimizer steps."""
        return self._detector.is_due(step) and self._detector.update(step, self._masks())

    def draw(self) -> ek.Ticket:
        """The ticket of the gates as they are now."""
        return draw(self.head_gates, self.neuron_gates, **self._ratios())

    def rewind(self) -> None:
        """Takes the gates away and puts back the weights that the model had."""
        ek.remove_gates(self._model)
        self._model.load_state_dict(self._start)

    def record(self) -> dict[str, Any]:
        """What the looks at the ticket have found, for the report of a run."""
        return {
            "drawn_by": "early bird" if self._detector.fired else "limit",
            "max_steps": self.settings.max_steps,
            "threshold": self.settings.threshold,
            "interval": self._detector.interval,
            "checks": self._detector.state_dict()["history"],
        }

    def state_dict(self) -> dict[str, Any]:
        """What changes while searching, beside the model."""
        return self._detector.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave, for a search made with the same model and settings."""
        self._detector.load_state_dict(state)

    def _masks(self) -> Masks:
        return draw_masks(self.head_gates, self.neuron_gates, **self._ratios())

    def _ratios(self) -> dict[str, Any]:
        return {"head_ratio": self.settings.head_ratio, "neuron_ratio": self.settings.neuron_ratio}
