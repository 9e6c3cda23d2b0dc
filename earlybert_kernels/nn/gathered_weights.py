"""The active units' weights of all layers at once, in the place of each layer's own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from .. import ops
from ..ops.dispatch import gathers_units
from .encoder_layer import EncoderLayer, LayerWeights, own_weights


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
    first, norm = own_weights(layers[0]), layers[0].parts.output_norm
    given = (*first.feed_forward, norm.weight, norm.bias, first.active_neurons, first.neuron_gates)
    return gathers_units("feed_forward_sublayer", x, *given, size=x.shape[0])


def gather_weights(layers: Sequence[EncoderLayer]) -> list[LayerWeights]:
    """The active units' weights of all layers, gates folded in, by one call of `ops.gather_units`.

    With them a masked layer is a compact one. Their gradients go back to the Parameters in one call as well.
    """
    slots = []
    for layer in layers:
        parts = layer.parts
        of = {
            "heads": (layer.active_heads, parts.head_size, layer.head_gates),
            "neurons": (layer.active_neurons, 1, layer.neuron_gates),
        }
        for linear, name, dim, unit in parts.unit_parameters():
            chosen, size, own = of[unit]
            slots.append((getattr(linear, name), chosen, dim, size, own if dim == 1 else None))
    changed = [slot for slot in slots if slot[1] is not None or slot[4] is not None]
    tensors, units, dims, sizes, gates = (list(column) for column in zip(*changed, strict=True))
    gathered = iter(ops.gather_units(tensors, units, dims, sizes=sizes, gates=gates))
    weights = iter([slot[0] if slot[1] is None and slot[4] is None else next(gathered) for slot in slots])
    results = []
    for layer in layers:
        attention, feed_forward = tuple(islice(weights, 7)), tuple(islice(weights, 3))
        biases = layer.parts.attention_output.bias, layer.parts.output.bias
        results.append(LayerWeights((*attention, biases[0]), (*feed_forward, biases[1])))
    return results
