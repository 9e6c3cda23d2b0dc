"""The learnable gates of the search: one number a head and one a neuron, all starting at 1."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from .models import find_base, layer_parts, refuse_distributed
from .models.compact_models import set_gated
from .nn.layer_gates import add_gates, detach_gates
from .units import fold_gates

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
        ValueError: the model is wrapped in DistributedDataParallel already.
    """
    layers = layer_parts(model)
    refuse_distributed(model, "enable_gates")
    set_gated(find_base(model)[0], model, True)
    for layer, parts in layers:
        add_gates(layer, parts)
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
        heads, neurons = detach_gates(layer)
        if heads is not None and neurons is not None:
            parts.attention_output.weight.copy_(fold_gates(parts.attention_output.weight, heads, parts.head_size))
            parts.output.weight.copy_(fold_gates(parts.output.weight, neurons))
    set_gated(find_base(model)[0], model, False)
    return model


def _gate(layer: nn.Module, name: str) -> nn.Parameter:
    gates = getattr(layer, name, None)
    if gates is None:
        raise ValueError("the model has no gates: call earlybert_kernels.enable_gates(model) first")
    return gates
