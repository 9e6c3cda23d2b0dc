"""What is asked of a BERT before anything is done to it: a variant that is known, plain modules, a config that fits."""

from __future__ import annotations

import functools
from collections import defaultdict

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert import modeling_bert as hf

from ..nn.plain import extension
from .compact_classes import COMPACT_CLASSES
from .compact_config import CompactBertConfig

#: Names that transformers gives the activations that the ops know.
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}

# The field of the config that says how large a Parameter is, by a part of its name; the first that fits.
_FIELDS = {
    "word_embeddings": "vocab_size",
    "position_embeddings": "max_position_embeddings",
    "token_type_embeddings": "type_vocab_size",
    "predictions.bias": "vocab_size",
    "decoder": "vocab_size",
    "intermediate": "intermediate_size",
    "classifier": "num_labels",
}


def check_config(config) -> None:
    """Raises ValueError for variants of BERT that the fused layers do not compute."""
    if config.is_decoder or config.add_cross_attention:
        raise ValueError(
            "a BERT decoder (config.is_decoder or config.add_cross_attention) cannot be converted: the fused "
            "attention is bidirectional self-attention"
        )
    if config.hidden_act not in ACTIVATIONS:
        raise ValueError(
            f"hidden_act={config.hidden_act!r} cannot be converted; the fused feed-forward computes "
            f"{', '.join(ACTIVATIONS)}"
        )
    implementation = getattr(config, "_attn_implementation", None) or "eager"
    function = ALL_ATTENTION_FUNCTIONS.get(implementation)
    if implementation != "eager" and not getattr(function, "__module__", "").startswith("transformers."):
        raise ValueError(
            f"the attention function {implementation!r} is none of transformers' own, and a converted model would not "
            "run it: call model.set_attn_implementation('sdpa') first"
        )
    _check_fields(config)


def check_attention(name: str, attention: hf.BertSelfAttention) -> None:
    """Raises ValueError unless a self-attention computes what the fused one does: bidirectional, scores as usual."""
    if attention.is_causal or attention.is_decoder:
        raise ValueError(f"{name} is causal, and the fused attention is bidirectional: restore the model first")
    usual = attention.attention_head_size**-0.5
    if attention.scaling != usual:
        raise ValueError(
            f"{name}.scaling is {attention.scaling}, and the fused attention scales by {usual}: scale the query's "
            "weight and bias instead"
        )


def check_base(base: hf.BertModel) -> None:
    """Raises TypeError if a base model does more than `BertModel`, which its fused forward would leave out."""
    if type(base).forward is not hf.BertModel.forward:
        raise TypeError(f"{_full_name(type(base))} has a forward of its own, which a converted model would not run")


def check_plain(name: str, module: nn.Module, cls: type) -> None:
    """Raises TypeError unless a module is of the very class that transformers puts there, and nothing was put on it."""
    if type(module) is not cls:
        found = _full_name(type(module))
        advice = "; merge the adapter first (model.merge_and_unload())" if found.startswith("peft.") else ""
        raise TypeError(f"{name} is a {found}, expected a plain {_full_name(cls)}{advice}")
    if (found := extension(module)) is not None:
        raise TypeError(f"{name} {found}, which a converted model would not run; remove it first")


def check_agreement(model: nn.Module, base: hf.BertModel, *, whole: bool = True) -> None:
    """Raises ValueError unless the model is what transformers builds of its config, as it does when one is loaded.

    Layers, widths, heads, sizes of embeddings, norms and tied weights are compared with a model that is built on the
    meta device. Layers may not be one another again, nor share Parameters: each is pruned and saved as its own.

    Args:
        whole: the heads too, and no Parameter more than the config's model has; else what the base model has in common
            with it, so that other embeddings, poolers and heads are no obstacle.
    """
    layers = base.encoder.layer
    if len(layers) != base.config.num_hidden_layers:
        raise ValueError(
            f"the model has {len(layers)} layers and config.num_hidden_layers is {base.config.num_hidden_layers}: "
            "change one of them"
        )
    _check_fields(base.config)
    _check_not_shared(layers)
    checked = _built_by_transformers(model) if whole else []
    if not any(module.config is base.config for module in checked):
        checked.append(base)
    for module in checked:
        _check_built(module, whole=whole and type(module) in _known_classes())


def _check_fields(config) -> None:
    """Fields by which a config is no longer that of the model which transformers 5 builds of it."""
    kind = getattr(config, "position_embedding_type", None) or "absolute"
    if kind != "absolute":
        raise ValueError(
            f"config.position_embedding_type={kind!r} is not supported: neither transformers 5 nor this library "
            "computes relative positions, so that the model would not be the one that was trained"
        )
    if getattr(config, "pruned_heads", None):
        raise ValueError(
            f"config.pruned_heads={config.pruned_heads!r} is not supported: transformers 5 ignores it and builds all "
            "heads, which are not those of the weights; remove heads with earlybert_kernels.compact"
        )
    if config.num_attention_heads < 1 or config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"config.hidden_size={config.hidden_size} is no multiple of config.num_attention_heads="
            f"{config.num_attention_heads}"
        )


def _check_not_shared(layers: nn.ModuleList) -> None:
    names: dict[nn.Parameter, str] = {}
    for name, parameter in layers.named_parameters(remove_duplicate=False):
        if parameter in names:
            raise ValueError(
                f"encoder.layer.{name} and encoder.layer.{names[parameter]} are one Parameter: layers that are "
                "repeated or share weights can be neither pruned nor saved one by one; copy.deepcopy the layer"
            )
        names[parameter] = name


def _built_by_transformers(model: nn.Module) -> list[nn.Module]:
    """The outermost modules in `model` of which a config tells how to build them."""
    if type(model) in _known_classes():
        return [model]
    return [module for child in model.children() for module in _built_by_transformers(child)]


@functools.cache
def _known_classes() -> frozenset[type]:
    return frozenset({*COMPACT_CLASSES, *map(COMPACT_CLASSES.compact, COMPACT_CLASSES)})


def _check_built(module: nn.Module, *, whole: bool) -> None:
    config = module.config
    compact = isinstance(config, CompactBertConfig)
    stock_class = COMPACT_CLASSES.stock(type(module))
    if stock_class not in COMPACT_CLASSES:
        stock_class = hf.BertModel
    if compact is not (COMPACT_CLASSES.stock(type(module)) is not type(module)):
        raise ValueError(f"the model is a {type(module).__name__} and its config a {type(config).__name__}")
    arguments = {"add_pooling_layer": module.pooler is not None} if stock_class is hf.BertModel else {}
    with torch.device("meta"):
        built = (COMPACT_CLASSES.compact(stock_class) if compact else stock_class)(config, **arguments)
    ours, theirs = _shapes(module), _shapes(built)
    differing = [name for name in theirs if name in ours and ours[name] != theirs[name]]
    if differing:
        name = differing[0]
        raise ValueError(
            f"the model and its config do not agree: {name} is {ours[name]}, by the config{_field(name, config)} "
            f"{theirs[name]}{_others(differing)}. Change the config or the model, so that a saved one can be loaded"
        )
    surplus = sorted(ours.keys() ^ theirs.keys()) if whole else []
    if surplus:
        where = "the config's model, and not this one," if surplus[0] in theirs else "this model, and not the config's,"
        raise ValueError(f"the model and its config do not agree: {where} has {surplus[0]}{_others(surplus)}")
    _check_attributes(module, built)
    if whole:
        _check_ties(module, built)


def _check_attributes(module: nn.Module, built: nn.Module) -> None:
    """What no shape shows."""
    of = dict(module.named_modules())
    for name, theirs in built.named_modules():
        ours = of.get(name)
        if isinstance(theirs, nn.LayerNorm) and isinstance(ours, nn.LayerNorm) and ours.eps != theirs.eps:
            raise ValueError(f"{name}.eps is {ours.eps}, and config.layer_norm_eps {theirs.eps}: change one of them")
        if isinstance(theirs, hf.BertSelfAttention) and isinstance(ours, hf.BertSelfAttention):
            mine, wanted = ours.attention_head_size, theirs.attention_head_size
            if mine != wanted:
                raise ValueError(
                    f"{name} has heads of {mine} values, and by the config (num_attention_heads="
                    f"{module.config.num_attention_heads}) they have {wanted}: change one of them"
                )


def _check_ties(module: nn.Module, built: nn.Module) -> None:
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


def _field(name: str, config) -> str:
    field = next((field for part, field in _FIELDS.items() if part in name), "hidden_size")
    return f" ({field}={getattr(config, field)})"


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
