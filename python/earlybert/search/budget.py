"""How much to drop for a target in a user's terms: a ticket's cost as a linear function of what it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from earlybert_kernels import Ticket
from earlybert_kernels.models import layer_parts

from ..errors import UsageError
from .drawing import kept_count

#: Of how many neurons a layer keeps a multiple where a target is met, by the kind of device: a vector of AVX-512, and
#: the narrowest tile that GPUs' matrix kernels have.
PREFERRED_MULTIPLE = {"cpu": 16, "cuda": 64}

#: The largest share that is dropped for a target: behind it, what no layer can do without is no longer small.
MOST = 0.95


@dataclass(frozen=True)
class Cost:
    """What a model costs by the shares of its heads and neurons that are kept: `rest + heads * h + neurons * n`.

    Attributes:
        rest: what a ticket leaves as it is: embeddings, norms, the head.
        heads, neurons: what all heads and all neurons of the dense model add; all three are in one unit.
    """

    rest: float
    heads: float
    neurons: float

    def of(self, kept_heads: float, kept_neurons: float) -> float:
        """The cost of a model that keeps these shares, from 0 to 1."""
        return self.rest + self.heads * kept_heads + self.neurons * kept_neurons

    @property
    def dense(self) -> float:
        """The cost of the dense model."""
        return self.of(1, 1)

    def ratios(
        self, target: float, head_ratio: float, neuron_ratio: float, head_counts: Sequence[int], *, flag: str
    ) -> tuple[float, float]:
        """The shares of heads and neurons to drop, so that `target` of the dense cost is left.

        Heads are few, so that a share of them is rounded a good deal; neurons make up for that.

        Args:
            target: share of the dense model's cost.
            head_ratio, neuron_ratio: how heads and neurons share the cut: both are multiplied by one number.
            head_counts: heads per layer of the dense model.
            flag: what asked for it, for messages.

        Raises:
            UsageError: there is no such number.
        """
        gained = self.heads * head_ratio + self.neurons * neuron_ratio
        to_gain = (1 - target) * self.dense
        most = MOST / max(head_ratio, neuron_ratio, MOST / 1000)
        if not to_gain <= most * gained:
            raise UsageError(
                f"{flag}: a ticket that drops heads and neurons as {head_ratio:.3g} to {neuron_ratio:.3g} "
                f"(--head-ratio, --neuron-ratio) costs at least {1 - most * gained / self.dense:.3f} of the dense "
                f"model, and {target:.3f} is asked for; ask for less, or give other ratios"
            )
        factor = to_gain / gained
        heads = factor * head_ratio
        kept = sum(max(1, kept_count(count, heads)) for count in head_counts) / sum(head_counts)
        if not neuron_ratio:
            return heads, 0.0
        return heads, min(MOST, max(0.0, (to_gain - self.heads * (1 - kept)) / self.neurons))


def fitted(kept: Sequence[tuple[float, float]], costs: Sequence[float]) -> Cost:
    """The cost with the least sum of squared differences to what was measured.

    Args:
        kept: the shares of heads and of neurons that each measured model keeps; three at least, not on one line.
        costs: what each of them costs.
    """
    solution, *_ = np.linalg.lstsq(np.array([(1, *shares) for shares in kept]), np.array(costs), rcond=None)
    return Cost(*map(float, solution))


def parameter_cost(model: nn.Module) -> Cost:
    """The parameters of tickets of a model, stock or converted: those of the dense model are exact."""
    counts = {"heads": 0, "neurons": 0}
    for _, parts in layer_parts(model):
        for each in parts.unit_parameters():
            counts[each.unit] += getattr(each.linear, each.name).numel()
    rest = sum(parameter.numel() for parameter in model.parameters()) - sum(counts.values())
    return Cost(rest, counts["heads"], counts["neurons"])


def kept_shares(ticket: Ticket) -> tuple[float, float]:
    """The shares of a model's heads and neurons that a ticket of it, which has its sizes, keeps."""
    assert ticket.heads_of is not None and ticket.neurons_of is not None
    return (
        sum(map(len, ticket.heads)) / sum(ticket.heads_of),
        sum(map(len, ticket.neurons)) / sum(ticket.neurons_of),
    )
