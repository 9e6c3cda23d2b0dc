"""The gates of one layer: fused layers fold them into weights, in front of stock ones they multiply activations."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from ..units import check_gate_dtype, per_column
from .encoder_layer import EncoderLayer
from .parts import LayerParts


def add_gates(layer: nn.Module, parts: LayerParts) -> None:
    """Gives a layer gates of 1, unless it has some."""
    if getattr(layer, "head_gates", None) is None:
        weight = parts.output.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        heads, neurons = (
            nn.Parameter(torch.ones(units, dtype=dtype, device=weight.device))
            for units in (parts.num_heads, parts.num_neurons)
        )
        attach_gates(layer, parts, heads, neurons)


def attach_gates(layer: nn.Module, parts: LayerParts, heads: nn.Parameter | None, neurons: nn.Parameter | None) -> None:
    """Makes these the gates of a layer, converted or stock; None leaves it without."""
    if heads is None:
        return
    layer.register_parameter("head_gates", heads)
    layer.register_parameter("neuron_gates", neurons)
    if not isinstance(layer, EncoderLayer):
        # `partial` and not a closure, so that a deep copy of the model reads the copied gates.
        vars(layer)["_gate_hooks"] = [
            parts.attention_output.register_forward_pre_hook(
                functools.partial(_multiply_input, layer, "head_gates", parts.head_size)
            ),
            parts.output.register_forward_pre_hook(functools.partial(_multiply_input, layer, "neuron_gates", 1)),
        ]


def detach_gates(layer: nn.Module) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    """Takes the gates of a layer from it and returns them, None where it has none."""
    gates = getattr(layer, "head_gates", None), getattr(layer, "neuron_gates", None)
    if isinstance(layer, EncoderLayer):
        layer.head_gates = layer.neuron_gates = None
    elif gates[0] is not None:
        for handle in vars(layer).pop("_gate_hooks"):
            handle.remove()
        del layer.head_gates, layer.neuron_gates
    return gates


def _multiply_input(layer: nn.Module, name: str, columns: int, module: nn.Module, args: tuple) -> tuple[Tensor]:
    (x,) = args
    gates = check_gate_dtype(getattr(layer, name))
    return ((x * per_column(gates, columns)).to(x.dtype),)
