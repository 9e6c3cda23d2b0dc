"""What each head and neuron is worth: scores that a search comes to, the largest of which make the ticket."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

import earlybert_kernels as ek
from earlybert_kernels.models import layer_parts
from earlybert_kernels.nn.parts import LayerParts

from ..errors import UsageError

#: Head scores and neuron scores, layer by layer, float32 `(heads,)` and `(neurons,)`.
Scores = tuple[list[Tensor], list[Tensor]]


class Scorer:
    """The scores of a model with gates, by the names of `arguments.SCORES`.

    - `gate`: |c|, EarlyBERT's (arXiv 2101.00063).
    - `gate-norm`: |c| times the norm of what the unit writes: its columns of the weight behind the gate.
    - `first-order`: the sum over the search's steps of |c dL/dc|: how much the loss of a step's batch changes, to the
      first order, where the unit is left out (Michel et al., arXiv 1905.10650; Molchanov et al., arXiv 1611.06440).
      The derivative by a gate is the sum over all tokens of activation times gradient, so that the gates' gradients
      are all that it takes, whether or not gates are trained.
    - `fisher`: the sum of (c dL/dc)^2 (Theis et al., arXiv 1801.05787). Both are of whole batches, and not of single
      examples.
    - `magnitude`: the norm of all weights and biases of the unit.
    """

    def __init__(self, model: nn.Module) -> None:
        """
        Args:
            model: has gates.
        """
        self._model = model
        self._heads = ek.head_gates(model)
        self._gates = [*self._heads, *ek.neuron_gates(model)]
        self._sums = {name: [torch.zeros_like(gate) for gate in self._gates] for name in ("first-order", "fisher")}
        self._is_observed = False

    @torch.no_grad()
    def observe(self) -> None:
        """Adds the gates' gradients of a step to the sums: after backward, before the optimizer's step."""
        self._is_observed = True
        gradients = [gate.new_zeros(gate.shape) if gate.grad is None else gate.grad for gate in self._gates]
        changes = torch._foreach_abs(torch._foreach_mul(list(self._gates), gradients))
        for change in changes:
            change.nan_to_num_(0.0, 0.0, 0.0)  # of a step in float16 that the scaler skips
        torch._foreach_add_(self._sums["first-order"], changes)
        torch._foreach_addcmul_(self._sums["fisher"], changes, changes)

    @torch.no_grad()
    def scores(self, name: str) -> Scores:
        """The scores of that name, as they are now.

        Raises:
            UsageError: they are made of gradients, and none were observed.
        """
        if name in self._sums:
            if not self._is_observed:
                raise UsageError(
                    f"score {name} is made of the gates' gradients: call Search.observe() after every backward, before "
                    "the optimizer's step"
                )
            return self._split(self._sums[name])
        if name == "magnitude":
            return self._norms(written=False)
        if name == "gate-norm":
            heads, neurons = self._norms(written=True)
            return self._split([gate * norm for gate, norm in zip(self._gates, [*heads, *neurons], strict=True)])
        return self._split([gate.detach() for gate in self._gates])

    def _split(self, values: list[Tensor]) -> Scores:
        return values[: len(self._heads)], values[len(self._heads) :]

    def _norms(self, *, written: bool) -> Scores:
        layers = [parts for _, parts in layer_parts(self._model)]
        return (
            [_norm(parts, "heads", written=written) for parts in layers],
            [_norm(parts, "neurons", written=written) for parts in layers],
        )

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs."""
        return {"sums": self._sums, "is_observed": self._is_observed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave."""
        self._is_observed = state["is_observed"]
        for name, sums in self._sums.items():
            for own, saved in zip(sums, state["sums"][name], strict=True):
                own.copy_(saved)


def _norm(parts: LayerParts, unit: Literal["heads", "neurons"], *, written: bool) -> Tensor:
    """The norm of each unit's weights, float32 `(units,)`: of all, or of those that write its output."""
    count, size = parts.sizes(unit)
    squares = parts.output.weight.new_zeros(count)
    for each in parts.unit_parameters():
        if each.unit == unit and (each.dim == 1 or not written):
            values = getattr(each.linear, each.name).transpose(0, each.dim)
            squares += values.reshape(each.times, count, size, -1).square().sum((0, 2, 3))
    return squares.sqrt()
