"""When to stop searching: the early bird."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

import earlybert_kernels as ek
from earlybert_kernels import Ticket

from ..errors import UsageError
from .drawing import Masks, to_masks, to_ticket


def default_interval(max_steps: int) -> int:
    """Optimizer steps from one check to the next in a search of so many: 10, or less, so that there are a dozen."""
    return min(10, max(1, max_steps // 12))


@dataclass(frozen=True)
class Check:
    """One comparison of a ticket with the one before it.

    Attributes:
        step: optimizer steps taken when the later ticket was drawn.
        heads: distance of the kept heads as a share of chance level: 0 is the same, 1 is as far apart as
            chance.
        neurons: the same for the neurons.
    """

    step: int
    heads: float
    neurons: float


class EarlyBirdDetector:
    """Notices that a ticket has stopped moving.

    Early-Bird Tickets (arXiv 1909.11957) compares each new mask with the last five and stops when none is
    further away than 0.1. EarlyBERT adopts the idea, its published code a fixed number of steps. On the gates
    of a transformer the rule as published stops at once, for three reasons, each with its remedy here:

    - 0.1 is an absolute distance, but what chance gives depends on the share p that is dropped: two random
      tickets that drop p are p apart (`Ticket.distance`), so that at p = 0.1 the rule fires on noise. Here a
      distance is divided by the chance level of its ticket.
    - Masks are compared step by step, and one step of Adam moves every gate by no more than the learning
      rate: neighbours hardly differ however fast the ranking drifts. Here checks are `interval` steps apart,
      and nothing is decided before `min_steps`.
    - One distance over all units is the neurons' (BERT-base has 36,864 of them and 144 heads). Here heads and
      neurons are compared apart, and both have to be at rest.

    Attributes:
        history: every comparison so far.
        fired: whether the ticket has come to rest.
    """

    def __init__(
        self,
        num_heads: Sequence[int],
        num_neurons: Sequence[int],
        *,
        interval: int,
        threshold: float,
        patience: int,
        min_steps: int,
    ) -> None:
        """
        Args:
            num_heads: heads per layer of the dense model.
            num_neurons: neurons per layer of the dense model.
            interval: optimizer steps from one check to the next.
            threshold: largest distance, as a share of chance level, between tickets that count as the same.
            patience: how many comparisons in a row have to be at or below the threshold.
            min_steps: the detector does not fire before this many optimizer steps.
        """
        for name, value in (("interval", interval), ("patience", patience)):
            if value < 1:
                raise UsageError(f"{name}: expected at least 1, found {value}")
        if not 0 <= threshold < 1:
            raise UsageError(f"threshold: expected a share of chance level 0 <= threshold < 1, found {threshold}")
        self._counts = (list(num_heads), list(num_neurons))
        self.interval = interval
        self.threshold = threshold
        self.patience = patience
        self.min_steps = min_steps
        self.history: list[Check] = []
        self.fired = False
        self._last: Masks | None = None
        self._at_rest = 0

    def is_due(self, step: int) -> bool:
        """Whether a ticket is to be drawn and shown to `update` after this optimizer step."""
        return step % self.interval == 0

    def update(self, step: int, ticket: Ticket | Masks) -> bool:
        """Compares a ticket with the one before it.

        Args:
            step: optimizer steps taken.
            ticket: drawn from the gates as they are now; or the masks of one, which stay on their device: four
                numbers are all that is read back.

        Returns:
            True once both distances have been small for `patience` comparisons in a row and `min_steps` are
            over.
        """
        masks = to_masks(ticket, *self._counts) if isinstance(ticket, Ticket) else ticket
        if self._last is not None:
            check = Check(step, *_shares_of_chance(masks, self._last))
            self.history.append(check)
            self._at_rest = self._at_rest + 1 if max(check.heads, check.neurons) <= self.threshold else 0
        self._last = masks
        self.fired = self._at_rest >= self.patience and step >= self.min_steps
        return self.fired

    def state_dict(self) -> dict[str, Any]:
        """All that changes, as plain Python values."""
        last = None if self._last is None else to_ticket(self._last, *self._counts)
        return {
            "history": [asdict(check) for check in self.history],
            "fired": self.fired,
            "last": None if last is None else [last.heads, last.neurons],
            "at_rest": self._at_rest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave."""
        self.history = [Check(**check) for check in state["history"]]
        self.fired = state["fired"]
        self._last = None if state["last"] is None else to_masks(Ticket(*state["last"]), *self._counts)
        self._at_rest = state["at_rest"]


def _shares_of_chance(masks: Masks, last: Masks) -> list[float]:
    """Distance over the distance of two random tickets, which is the share of units that are dropped; of both kinds."""
    numbers = [
        (ek.ops.ticket_distance(mask, before.to(mask.device)), 1 - mask.sum().double() / len(mask))
        for mask, before in zip(masks, last, strict=True)
    ]
    read = torch.stack([torch.stack(pair) for pair in numbers]).tolist()  # the only wait for the device
    return [distance / chance if chance else 0.0 for distance, chance in read]
