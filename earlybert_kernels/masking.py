"""Running a converted model masked: a ticket's pruned units are skipped, their weights stay."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from .convert import is_converted
from .models import layer_parts
from .ticket import Ticket

Model = TypeVar("Model", bound=nn.Module)


def apply_ticket(model: Model, ticket: Ticket) -> Model:
    """From now on the model computes only the units of `ticket`; returns the model.

    Pruned units cost nothing and get zero gradients; their weights stay, and come back with another ticket or
    with `clear_ticket`. The ticket is not part of the `state_dict`: save it with `Ticket.save`.

    Args:
        model: a converted model.
        ticket: indices of the model's own units, at least one head and one neuron a layer.

    Raises:
        ValueError: the ticket does not fit the model, or the model is not converted (stock layers cannot skip).
        TypeError: the model's family has no adapter.
    """
    if not is_converted(model):
        raise ValueError("stock layers cannot skip units: call earlybert_kernels.convert(model) first")
    layers = layer_parts(model)
    check_ticket(model, ticket)
    for (layer, parts), heads, neurons in zip(layers, ticket.heads, ticket.neurons, strict=True):
        device = parts.query.weight.device
        # All units kept is the dense path, which gathers no weights.
        layer.active_heads = None if len(heads) == parts.num_heads else torch.tensor(heads, device=device)
        layer.active_neurons = None if len(neurons) == parts.num_neurons else torch.tensor(neurons, device=device)
    return model


def clear_ticket(model: Model) -> Model:
    """Computes all units again; returns the model.

    Raises:
        TypeError: the model's family has no adapter.
    """
    if is_converted(model):
        for layer, _ in layer_parts(model):
            layer.active_heads = layer.active_neurons = None
    return model


def check_ticket(model: nn.Module, ticket: Ticket) -> None:
    """Raises ValueError unless the ticket fits the model as it is now: layers, indices, no layer left empty."""
    parts = [parts for _, parts in layer_parts(model)]
    ticket.check_sizes([p.num_heads for p in parts], [p.num_neurons for p in parts])
