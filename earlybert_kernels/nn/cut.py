"""Cutting the Parameters of layers to the units that a ticket keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import ops
from ..ticket import Ticket
from ..units import repeated, unit_indices
from .parts import LayerParts


@torch.no_grad()
def cut(
    layers: Sequence[tuple[nn.Module, LayerParts]],
    ticket: Ticket,
    resized: Callable[[nn.Module, LayerParts], None],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Cuts the Parameters of every layer to the kept units, and their gradients and the optimizer's state with them.

    All of a device in one call of `ops.gather_units`, which on a GPU is a few launches; old and new need room at once.

    Args:
        layers: a model's, each with its parts.
        ticket: indices of their units.
        resized: called with every layer that has been cut, to put right what else says how many heads it has.
        optimizer: what trains the Parameters: it gets the new ones.
    """
    states = {} if optimizer is None else optimizer.state
    slots, pieces = [], []
    for (_, parts), heads, neurons in zip(layers, ticket.heads, ticket.neurons, strict=True):
        device = parts.output.weight.device
        kept = {"heads": unit_indices(heads, device), "neurons": unit_indices(neurons, device)}
        for linear, name, dim, unit, times in parts.unit_parameters():
            old = getattr(linear, name)
            slots.append((linear, name, old))
            followers = [value for value in states.get(old, {}).values() if _follows(value, old)]
            tensors = [old, *([] if old.grad is None else [old.grad]), *followers]
            count, size = parts.sizes(unit)
            pieces += [_Piece(tensor, repeated(kept[unit], times, count), size, dim) for tensor in tensors]
    cuts = iter(_gathered(pieces))
    for linear, name, old in slots:
        new = nn.Parameter(next(cuts), requires_grad=old.requires_grad)
        new.grad = None if old.grad is None else next(cuts)
        setattr(linear, name, new)
        if optimizer is not None:
            _replace(optimizer, old, new)
        if old in states:
            states[new] = {k: next(cuts) if _follows(v, old) else v for k, v in states.pop(old).items()}
    for layer, parts in layers:
        for linear in {linear for linear, *_ in parts.unit_parameters()}:
            linear.out_features, linear.in_features = linear.weight.shape
        resized(layer, parts)


class _Piece(NamedTuple):
    """A tensor that is to be cut to some units, which lie along a dimension with so many rows or columns each."""

    tensor: Tensor
    units: Tensor
    size: int
    dim: int


def _gathered(pieces: list[_Piece]) -> list[Tensor]:
    """The kept part of each."""
    results: dict[int, Tensor] = {}
    for device in {piece.tensor.device for piece in pieces}:
        numbers = [number for number, piece in enumerate(pieces) if piece.tensor.device == device]
        tensors, units, sizes, dims = zip(*(pieces[number] for number in numbers), strict=True)
        results.update(zip(numbers, ops.gather_units(tensors, units, dims, sizes=sizes), strict=True))
    return [results[number] for number in range(len(pieces))]


def _follows(value: object, parameter: Tensor) -> bool:
    """Whether something that an optimizer keeps for a Parameter has to be cut with it."""
    return torch.is_tensor(value) and value.shape == parameter.shape


def _replace(optimizer: torch.optim.Optimizer, old: nn.Parameter, new: nn.Parameter) -> None:
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
