"""Whether a model is the one that transformers would build of its config, so that a saved one can be loaded."""

from __future__ import annotations

import functools
from collections import defaultdict
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..nn import EncoderLayer
from .checks import check_fields
from .compact_classes import COMPACT_CLASSES
from .compact_config import CompactConfig
from .family import ModelFamily
from .loaded import others


def check_agreement(family: ModelFamily, model: nn.Module, base: PreTrainedModel, *, whole: bool = True) -> None:
    """Raises ValueError unless the model is what transformers builds of its config, as it does when one is loaded.

    Layers, widths, heads, sizes of embeddings, norms and tied weights are compared with a model that is built on the
    meta device. Layers may not be one another again, nor share Parameters: each is pruned and saved as its own.

    Args:
        whole: the heads too, and no Parameter more than the config's model has; else what the base model has in common
            with it, so that other embeddings, poolers and heads are no obstacle.
    """
    layers = family.layers_of(base)
    if len(layers) != (stated := family.num_layers(base.config)):
        field = "a config for one shared layer" if family.shares_layer else f"config.num_hidden_layers is {stated}"
        raise ValueError(f"the model has {len(layers)} layers and {field}: change one of them")
    check_fields(base.config)
    _check_not_shared(family.layers, layers)
    checked = _built_by_transformers(model) if whole else []
    if not any(module.config is base.config for module in checked):
        checked.append(base)
    for module in checked:
        _check_built(family, module, whole=whole and type(module) in _known_classes())


def build_like(family: ModelFamily, model: nn.Module, cls: type, config: PreTrainedConfig) -> PreTrainedModel:
    """A new model of a class, untrained; a base model has a pooler if `model`, which is one too, has one."""
    if COMPACT_CLASSES.stock(cls) is family.base and hasattr(model, "pooler"):
        return cls(config, add_pooling_layer=model.pooler is not None)
    return cls(config)


def _check_not_shared(path: str, layers: nn.ModuleList) -> None:
    names: dict[nn.Parameter, str] = {}
    for name, parameter in layers.named_parameters(remove_duplicate=False):
        if parameter in names:
            raise ValueError(
                f"{path}.{name} and {path}.{names[parameter]} are one Parameter: layers that are "
                "repeated or share weights can be neither pruned nor saved one by one; copy.deepcopy the layer"
            )
        names[parameter] = name


def _built_by_transformers(model: nn.Module) -> list[PreTrainedModel]:
    """The outermost modules in `model` of which a config tells how to build them."""
    if isinstance(model, PreTrainedModel) and type(model) in _known_classes():
        return [model]
    return [module for child in model.children() for module in _built_by_transformers(child)]


@functools.cache
def _known_classes() -> frozenset[type]:
    return frozenset({*COMPACT_CLASSES, *map(COMPACT_CLASSES.compact, COMPACT_CLASSES)})


def _check_built(family: ModelFamily, module: PreTrainedModel, *, whole: bool) -> None:
    config = module.config
    compact = isinstance(config, CompactConfig)
    stock_class = COMPACT_CLASSES.stock(type(module))
    if compact is not (stock_class is not type(module)):
        raise ValueError(f"the model is a {type(module).__name__} and its config a {type(config).__name__}")
    if stock_class not in COMPACT_CLASSES:
        stock_class = family.base
    with torch.device("meta"):
        cls = (COMPACT_CLASSES.compact(stock_class) if compact else None) or stock_class
        built = build_like(family, module, cls, config)
    ours, theirs = _shapes(module), _shapes(built)
    differing = [name for name in theirs if name in ours and ours[name] != theirs[name]]
    if differing:
        name, field = differing[0], _field(family, differing[0], config)
        raise ValueError(
            f"the model and its config do not agree: {name} is {ours[name]}, by the config{field} "
            f"{theirs[name]}{others(differing)}. Change the config or the model, so that a saved one can be loaded"
        )
    surplus = sorted(ours.keys() ^ theirs.keys()) if whole else []
    if surplus:
        where = "the config's model, and not this one," if surplus[0] in theirs else "this model, and not the config's,"
        raise ValueError(f"the model and its config do not agree: {where} has {surplus[0]}{others(surplus)}")
    _check_attributes(family, module, built)
    if whole:
        _check_ties(module, built)


def _check_attributes(family: ModelFamily, module: PreTrainedModel, built: nn.Module) -> None:
    """What no shape shows."""
    of, attention = dict(module.named_modules()), family.layer.classes[family.layer.parts["self_attention"]]
    for name, theirs in built.named_modules():
        if type(theirs) is family.layer.classes[""] and name in of:
            wanted, mine = (_places(family, each) for each in (theirs, of[name]))
            if mine != wanted:
                raise ValueError(f"{name} has {mine}, and by the config {wanted}: change one of them")
        ours = of.get(name)
        if isinstance(theirs, nn.LayerNorm) and isinstance(ours, nn.LayerNorm) and ours.eps != theirs.eps:
            raise ValueError(f"{name}.eps is {ours.eps}, by the config {theirs.eps}: change one of them")
        if isinstance(theirs, attention) and isinstance(ours, attention):
            mine, wanted = (getattr(each, family.layer.head_size) for each in (ours, theirs))
            if mine != wanted:
                raise ValueError(
                    f"{name} has heads of {mine} values, and by the config (num_attention_heads="
                    f"{module.config.num_attention_heads}) they have {wanted}: change one of them"
                )


def _places(family: ModelFamily, layer: nn.Module) -> dict[str, Any]:
    """Which tokens a layer, stock or converted, attends to, and the positions that it takes."""
    facts = vars(layer.parts) if isinstance(layer, EncoderLayer) else family.layer.facts(layer)
    return {name: facts.get(name) for name in ("window", "positions")}


def _check_ties(module: PreTrainedModel, built: nn.Module) -> None:
    ours, theirs = _ties(module), _ties(built)
    for tied in sorted(theirs - ours):
        raise ValueError(
            f"by the config (tie_word_embeddings={module.config.tie_word_embeddings}) {' and '.join(tied)} are one "
            "Parameter, in the model they are not: set config.tie_word_embeddings=False or call model.tie_weights()"
        )
    for tied in sorted(ours - theirs):
        raise ValueError(
            f"{' and '.join(tied)} are one Parameter, by the config (tie_word_embeddings="
            f"{module.config.tie_word_embeddings}) they are not: set config.tie_word_embeddings=True or copy one"
        )


def _ties(module: nn.Module) -> set[tuple[str, ...]]:
    names: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names[parameter].append(name)
    return {tuple(sorted(group)) for group in names.values() if len(group) > 1}


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of all that is saved, gates aside."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in module.state_dict(keep_vars=True).items()
        if not name.endswith(("head_gates", "neuron_gates"))
    }


def _field(family: ModelFamily, name: str, config: PreTrainedConfig) -> str:
    field = next((field for part, field in family.size_fields.items() if part in name), "hidden_size")
    return f" ({field}={getattr(config, field)})"
