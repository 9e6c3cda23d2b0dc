"""The encoder layers of a model, and what a stock one is made of."""

from __future__ import annotations

import typing
from typing import Any

from torch import nn
from transformers.activations import ACT2FN

from ..nn import EncoderLayer, LayerParts
from .checks import check_attention, check_plain
from .family import ModelFamily
from .registry import find_base


def layer_parts(model: nn.Module) -> list[tuple[Any, LayerParts]]:
    """Every encoder layer of `model`, converted (an `EncoderLayer`) or stock, with its parts.

    Raises:
        TypeError, ValueError: as `find_base` and `parts`.
    """
    family, base = find_base(model)
    return [
        (layer, layer.parts if isinstance(layer, EncoderLayer) else parts(family, layer, name))
        for name, layer in family.named_layers_of(base)
    ]


def parts(family: ModelFamily, layer: nn.Module, name: str) -> LayerParts:
    """The parts of a stock layer.

    Raises:
        TypeError: a module is not the one transformers puts there, or carries hooks, which a fused layer
            would pass by; the message names it.
        ValueError: the attention is causal or scales its scores in a way of its own.
    """
    of = family.layer
    classes = typing.get_type_hints(of.kind)
    for path, cls in of.classes.items():
        check_plain(f"{name}.{path}".rstrip("."), layer.get_submodule(path), cls)
    modules: dict[str, Any] = {field: layer.get_submodule(path) for field, path in of.parts.items()}
    for field, path in of.parts.items():
        if path not in of.classes:
            first, *others = typing.get_args(classes[field]) or (classes[field],)  # X | None, or X | Y
            check_plain(f"{name}.{path}", modules[field], next((c for c in others if type(modules[field]) is c), first))
    attention = modules["self_attention"]
    activation = getattr(attention.config, family.activation_field)
    check_plain(f"{name}.{of.activation}", layer.get_submodule(of.activation), type(ACT2FN[activation]))
    check_attention(of, f"{name}.{of.parts['self_attention']}", attention)
    facts = {"head_size": getattr(attention, of.head_size), "activation": family.activations[activation]}
    return of.kind(**modules, **facts, **of.facts(layer))


def resized(family: ModelFamily, layer: nn.Module, layer_parts: LayerParts) -> None:
    """Tells the modules of a layer, stock or converted, how many heads it has after a cut."""
    attention = layer_parts.self_attention
    counts = {family.layer.heads: layer_parts.num_heads}
    counts[family.layer.width] = layer_parts.num_heads * layer_parts.head_size
    for name, count in counts.items():
        if name is not None:
            setattr(attention, name, count)
