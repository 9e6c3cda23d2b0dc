"""Running a converted model masked: a ticket's pruned units are skipped, their weights stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from .convert import is_converted
from .models import layer_parts
from .ticket import Ticket
from .units import unit_list

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
        device = parts.output.weight.device
        layer.active_heads = _updated(layer.active_heads, heads, parts.num_heads, device)
        layer.active_neurons = _updated(layer.active_neurons, neurons, parts.num_neurons, device)
    return model


def clear_ticket(model: Model) -> Model:
    """Computes all units again; returns the model.

    Raises:
        TypeError: the model's family has no adapter.
    """
    if is_converted(model):
        for layer, parts in layer_parts(model):
            device = parts.output.weight.device
            layer.active_heads = _updated(layer.active_heads, range(parts.num_heads), parts.num_heads, device)
            layer.active_neurons = _updated(layer.active_neurons, range(parts.num_neurons), parts.num_neurons, device)
    return model


def reserve_masks(model: Model) -> Model:
    """From now on tickets are kept as one bool mask a layer that `apply_ticket` and `clear_ticket` change in place.

    A captured step (`CapturedStep`) then goes on with the new ticket as it is, where it would have to be captured
    again. The price: a GPU has to find the kept units in every step, and prunes less tightly than with the exact
    widths that the host knows otherwise, without a ticket as with one. A ticket that is applied stays; `compact`
    removes the masks.

    Args:
        model: a converted model.

    Returns:
        The model.

    Raises:
        ValueError: the model is not converted.
        TypeError: the model's family has no adapter.
    """
    if not is_converted(model):
        raise ValueError("stock layers cannot skip units: call earlybert_kernels.convert(model) first")
    for layer, parts in layer_parts(model):
        for name, units in (("active_heads", parts.num_heads), ("active_neurons", parts.num_neurons)):
            kept = unit_list(getattr(layer, name), units)
            setattr(layer, name, _mask(kept, units).to(parts.output.weight.device))
    return model


def release_masks(model: Model) -> Model:
    """The opposite of `reserve_masks`; a ticket that is applied stays. Returns the model.

    Raises:
        TypeError: the model's family has no adapter.
    """
    if is_converted(model):
        for layer, parts in layer_parts(model):
            for name, units in (("active_heads", parts.num_heads), ("active_neurons", parts.num_neurons)):
                active = getattr(layer, name)
                if active is not None and active.dtype == torch.bool:
                    setattr(layer, name, _updated(None, unit_list(active, units), units, active.device))
    return model


def check_ticket(model: nn.Module, ticket: Ticket) -> None:
    """Raises ValueError unless the ticket fits the model as it is now: layers, indices, no layer left empty.

    Raises:
        TypeError: it is no `Ticket`.
    """
    if not isinstance(ticket, Ticket):
        raise TypeError(f"expected an earlybert_kernels.Ticket (Ticket.load reads one from a file), found {ticket!r}")
    parts = [parts for _, parts in layer_parts(model)]
    ticket.check_sizes([p.num_heads for p in parts], [p.num_neurons for p in parts])


def _updated(active: Tensor | None, kept: Sequence[int], units: int, device: torch.device) -> Tensor | None:
    """What a layer keeps as its active units from now on; a mask stays the tensor that it is."""
    if active is not None and active.dtype == torch.bool:
        return active.copy_(_mask(kept, units))
    # All units kept is the dense path, which gathers no weights.
    return None if len(kept) == units else torch.tensor(kept, device=device)


def _mask(kept: Sequence[int], units: int) -> Tensor:
    mask = torch.zeros(units, dtype=torch.bool)
    mask[list(kept)] = True
    return mask
