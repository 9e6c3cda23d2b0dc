"""The learnable gates of the search: one number a head and one a neuron, all starting at 1."""

from __future__ import annotations

import functools
from typing import TypeVar

import torch
from torch import Tensor, nn

from .models import find_base, layer_parts
from .nn import EncoderLayer, LayerParts
from .units import check_gate_dtype, fold_gates, per_column

Model = TypeVar("Model", bound=nn.Module)


def enable_gates(model: Model) -> Model:
    """Adds the gates of EarlyBERT (arXiv 2101.00063, section 3.1) to every encoder layer, all 1; returns the model.

    Each layer gets two float32 Parameters, `head_gates` `(heads,)` and `neuron_gates` `(neurons,)`. On a converted
    model they are folded into the weight behind them and cost next to nothing; on a stock one they multiply
    the activations, which is the definition. Gates that are there already keep their values. `save_pretrained` saves
    them with the model, as one of model type `compact_bert` that keeps all units: call this on the model that will be
    saved, not on the `BertModel` inside it. `AutoModelFor....from_pretrained` brings them back.

    Raises:
        TypeError: the model's family has no adapter.
    """
    layers = layer_parts(model)
    find_base(model)[0].set_gated(model, True)
    for layer, parts in layers:
        if getattr(layer, "head_gates", None) is None:
            weight = parts.query.weight
            dtype = torch.promote_types(weight.dtype, torch.float32)
            heads, neurons = (
                nn.Parameter(torch.ones(units, dtype=dtype, device=weight.device))
                for units in (parts.num_heads, parts.num_neurons)
            )
            attach(layer, parts, heads, neurons)
    return model


def head_gates(model: nn.Module) -> list[nn.Parameter]:
    """The head gates, float32 `(heads,)`, layer by layer.

    Raises:
        ValueError: the model has no gates.
    """
    return [_gate(layer, "head_gates") for layer, _ in layer_parts(model)]


def neuron_gates(model: nn.Module) -> list[nn.Parameter]:
    """The neuron gates, float32 `(neurons,)`, layer by layer.

    Raises:
        ValueError: the model has no gates.
    """
    return [_gate(layer, "neuron_gates") for layer, _ in layer_parts(model)]


@torch.no_grad()
def remove_gates(model: Model) -> Model:
    """Folds the gates into the weights for good, deletes them and returns the model; its outputs stay the same.

    An optimizer that holds the gates goes on holding them: build it anew. `compact`, given the optimizer, removes
    gates from both.
    """
    for layer, parts in layer_parts(model):
        heads, neurons = detach(layer)
        if heads is not None:
            parts.attention_output.weight.copy_(fold_gates(parts.attention_output.weight, heads, parts.head_size))
            parts.output.weight.copy_(fold_gates(parts.output.weight, neurons))
    find_base(model)[0].set_gated(model, False)
    return model


def attach(layer: nn.Module, parts: LayerParts, heads: nn.Parameter | None, neurons: nn.Parameter | None) -> None:
    """Makes these the gates of a layer, converted or stock; None leaves it without."""
    if heads is None:
        return
    layer.register_parameter("head_gates", heads)
    layer.register_parameter("neuron_gates", neurons)
    if not isinstance(layer, EncoderLayer):
        # `partial` and not a closure, so that a deep copy of the model reads the copied gates.
        layer._gate_hooks = [
            parts.attention_output.register_forward_pre_hook(
                functools.partial(_multiply_input, layer, "head_gates", parts.head_size)
            ),
            parts.output.register_forward_pre_hook(functools.partial(_multiply_input, layer, "neuron_gates", 1)),
        ]


def detach(layer: nn.Module) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    """Takes the gates of a layer from it and returns them, None where it has none."""
    gates = getattr(layer, "head_gates", None), getattr(layer, "neuron_gates", None)
    if isinstance(layer, EncoderLayer):
        layer.head_gates = layer.neuron_gates = None
    elif gates[0] is not None:
        for handle in layer._gate_hooks:
            handle.remove()
        del layer.head_gates, layer.neuron_gates, layer._gate_hooks
    return gates


def _multiply_input(layer: nn.Module, name: str, columns: int, module: nn.Module, args: tuple) -> tuple[Tensor]:
    (x,) = args
    gates = check_gate_dtype(getattr(layer, name))
    return ((x * per_column(gates, columns)).to(x.dtype),)


def _gate(layer: nn.Module, name: str) -> nn.Parameter:
    gates = getattr(layer, name, None)
    if gates is None:
        raise ValueError("the model has no gates: call earlybert_kernels.enable_gates(model) first")
    return gates
