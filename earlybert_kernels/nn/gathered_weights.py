"""The active units' weights of all layers at once, in the place of each layer's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import ops
from ..units import indices, repeated
from .encoder_layer import EncoderLayer, LayerWeights


def gathers(layers: Sequence[EncoderLayer], x: Tensor) -> bool:
    """Whether a forward pass should begin with `gather_weights`: with a ticket, where sublayers would gather.

    Each would do it for its own weights, by several launches, and again in the backward pass. A mask (`reserve_masks`)
    has no number of units that the host knows, and a layer that is checkpointed is not to keep its weights.
    """
    active = [units for layer in layers for units in (layer.active_heads, layer.active_neurons)]
    if all(units is None for units in active) or any(u is not None and u.dtype == torch.bool for u in active):
        return False
    if any(layer.gradient_checkpointing and layer.training for layer in layers):
        return False
    return layers[0].gathers_units(x)


def gather_weights(layers: Sequence[EncoderLayer]) -> list[LayerWeights]:
    """The active units' weights of all layers, gates folded in, by one call of `ops.gather_units`.

    With them a masked layer is a compact one. Their gradients go back to the Parameters in one call as well.
    """
    slots, tensors, units, dims, sizes, gates = [], [], [], [], [], []
    for layer in layers:
        of = {
            "heads": _chosen(layer.active_heads, layer.head_gates),
            "neurons": _chosen(layer.active_neurons, layer.neuron_gates),
        }
        for linear, name, dim, unit, times in layer.parts.unit_parameters():
            (chosen, own), (count, size) = of[unit], layer.parts.sizes(unit)
            own = own if dim == 1 else None
            if chosen is None and own is None:
                continue
            slots.append((linear, name))
            tensors.append(getattr(linear, name))
            units.append(None if chosen is None else repeated(chosen, times, count))
            dims.append(dim)
            sizes.append(size)
            gates.append(own)
    gathered = dict(zip(slots, ops.gather_units(tensors, units, dims, sizes=sizes, gates=gates), strict=True))

    def weights(linears: Sequence[nn.Linear]) -> tuple[Tensor | None, ...]:
        return tuple(
            gathered.get((linear, name), getattr(linear, name)) for linear in linears for name in ("weight", "bias")
        )

    of_layers = [layer.parts for layer in layers]
    return [LayerWeights(weights(own.attention_linears), weights(own.feed_forward_linears)) for own in of_layers]


def _chosen(active: Tensor | None, gates: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The active units as indices, and the gates.

    Of a mask on a GPU the host does not know how many it keeps: there it makes gates of 0, and nothing is left out.
    """
    if active is None or active.dtype != torch.bool:
        return active, gates
    if active.device.type == "cpu" and not torch.compiler.is_compiling():
        return indices(active), gates
    return None, active.float() if gates is None else active * gates
