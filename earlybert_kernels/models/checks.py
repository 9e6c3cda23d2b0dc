"""What is asked of a model before anything is done to it: a variant that is known, and plain modules."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..nn.plain import extension
from .family import Layer, ModelFamily, Rows
from .registry import family_of_type


def check_convertible(config: PreTrainedConfig) -> None:
    """Raises unless `convert` takes models of this transformers config, so that nothing need be loaded to know.

    Raises:
        TypeError: the model family has no adapter, or `config` is no config.
        ValueError: the family has one, but not for this variant of it (a decoder, an unknown activation, relative
            positions, heads pruned by an old version of transformers).
    """
    model_type = getattr(config, "model_type", None)
    if model_type is None:
        raise TypeError(f"expected a transformers config, found {type(config).__name__}")
    check_config(family_of_type(model_type), config)


def check_config(family: ModelFamily, config: PreTrainedConfig) -> None:
    """Raises ValueError for variants of a family that the fused layers do not compute."""
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise ValueError(
            f"a {family.name} decoder (config.is_decoder or config.add_cross_attention) cannot be converted: the fused "
            "attention is bidirectional self-attention"
        )
    for field, value in family.needed.items():
        if getattr(config, field) != value:
            raise ValueError(
                f"{field}={getattr(config, field)!r} cannot be converted; the fused {family.name} computes {value!r}"
            )
    if family.counts_tokens and config.pad_token_id is None:
        raise ValueError(f"config.pad_token_id is None, and the positions of {family.name} count from it")
    activation = getattr(config, family.activation_field)
    if activation not in family.activations:
        raise ValueError(
            f"{family.activation_field}={activation!r} cannot be converted; the fused feed-forward computes "
            f"{', '.join(family.activations)}"
        )
    implementation = getattr(config, "_attn_implementation", None) or "eager"
    function = ALL_ATTENTION_FUNCTIONS.get(implementation)
    if implementation != "eager" and not getattr(function, "__module__", "").startswith("transformers."):
        raise ValueError(
            f"the attention function {implementation!r} is none of transformers' own, and a converted model would not "
            "run it: call model.set_attn_implementation('sdpa') first"
        )
    check_fields(config)


def check_fields(config: PreTrainedConfig) -> None:
    """Raises ValueError for fields by which a config is not that of the model which transformers 5 builds of it."""
    kind = getattr(config, "position_embedding_type", None) or "absolute"
    if kind != "absolute":
        raise ValueError(
            f"config.position_embedding_type={kind!r} is not supported: neither transformers 5 nor this library "
            "computes relative positions, so that the model would not be the one that was trained"
        )
    if getattr(config, "pruned_heads", None):
        raise ValueError(
            f"config.pruned_heads={config.pruned_heads!r} is not supported: transformers 5 ignores it and builds all "
            "heads, which are not those of the weights; read it with earlybert_kernels.load_pruned, and save that"
        )
    if config.num_attention_heads < 1 or config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"config.hidden_size={config.hidden_size} is no multiple of config.num_attention_heads="
            f"{config.num_attention_heads}"
        )


def check_attention(of: Layer, name: str, attention: Any) -> None:
    """Raises ValueError unless a self-attention computes what the fused one does: bidirectional, scores as usual."""
    if attention.is_causal or getattr(attention, "is_decoder", False):
        raise ValueError(f"{name} is causal, and the fused attention is bidirectional: restore the model first")
    usual = getattr(attention, of.head_size) ** -0.5
    if getattr(attention, "scaling", usual) != usual:
        raise ValueError(
            f"{name}.scaling is {attention.scaling}, and the fused attention scales by {usual}: scale the query's "
            "weight and bias instead"
        )


def check_base(family: ModelFamily, base: nn.Module) -> None:
    """Raises TypeError if a base model does more than that of its family, which its fused forward would leave out."""
    if type(base).forward is not family.base.forward:
        raise TypeError(f"{full_name(type(base))} has a forward of its own, which a converted model would not run")


def check_encoder(family: ModelFamily, base: nn.Module) -> None:
    """Raises TypeError unless a base model that is not converted has the encoder that transformers gives it."""
    for path, cls in {**family.around, family.encoder: family.encoder_class}.items():
        check_plain(path, base.get_submodule(path), cls)
    if "forward" in vars(base):
        raise TypeError(
            f"a forward was put on this {type(base).__name__} (to run it under autocast, say), which a converted model "
            "would not run: convert it first, then wrap its forward"
        )


def check_heads(family: ModelFamily, model: nn.Module) -> None:
    """Raises TypeError for heads of classes with a forward of their own, in which padding would count as zeros."""
    scoring = tuple(head.stock for head in family.heads if head.rows is not Rows.FIRST)
    for module in model.modules():
        if isinstance(module, scoring) and family.head_of(module) is None:
            raise TypeError(
                f"{type(module).__qualname__} has a forward of its own, in which padding might be scored, as zeros: "
                f"convert the {family.base.__name__} inside it (earlybert_kernels.convert("
                f"model.{module.base_model_prefix})), whose output is 0 there, if that is what its loss leaves out"
            )


def check_plain(name: str, module: nn.Module, cls: type) -> None:
    """Raises TypeError unless a module is of the very class that transformers puts there, and nothing was put on it."""
    if type(module) is not cls:
        found = full_name(type(module))
        advice = "; merge the adapter first (model.merge_and_unload())" if found.startswith("peft.") else ""
        raise TypeError(f"{name} is a {found}, expected a plain {full_name(cls)}{advice}")
    if (extended := extension(module)) is not None:
        raise TypeError(f"{name} {extended}, which a converted model would not run; remove it first")


def full_name(cls: type) -> str:
    """A class by its module and name."""
    return f"{cls.__module__}.{cls.__qualname__}"
