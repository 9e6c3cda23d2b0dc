"""Model families: which module is the encoder, what its layers are made of, how to connect the fused ones.

A family is a module of this package with `BASE` (its base model class), `MODEL_TYPES` and the functions that
`bert` defines; adding a family is adding such a module to `FAMILIES`.
"""

from __future__ import annotations

from types import ModuleType

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..nn import EncoderLayer, LayerParts
from . import bert

FAMILIES: tuple[ModuleType, ...] = (bert,)

__all__ = ["FAMILIES", "check_convertible", "find_base", "layer_parts", "refuse_distributed"]


def check_convertible(config) -> None:
    """Raises unless `convert` takes models of this transformers config, so that nothing need be loaded to know.

    Raises:
        TypeError: the model family has no adapter, or `config` is no config.
        ValueError: the family has one, but not for this variant of it (a decoder, an unknown activation, relative
            positions, heads pruned by an old version of transformers).
    """
    model_type = getattr(config, "model_type", None)
    if model_type is None:
        raise TypeError(f"expected a transformers config, found {type(config).__name__}")
    for family in FAMILIES:
        if model_type in family.MODEL_TYPES:
            family.check_config(config)
            return
    raise TypeError(_no_adapter(f"models of type {model_type!r}"))


def find_base(model: nn.Module) -> tuple[ModuleType, nn.Module]:
    """The family of `model` and its one base model (`BertModel`, say), which may be `model` itself.

    Raises:
        TypeError: there is no base model of a known family in it, or more than one, or `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model (a torch.nn.Module), found {type(model).__name__}")
    found = [(f, m) for f in FAMILIES for m in model.modules() if isinstance(m, f.BASE)]
    if not found:
        raise TypeError(_no_adapter(type(model).__name__))
    if len(found) > 1:
        raise TypeError(f"{type(model).__name__} holds {len(found)} encoders; call this on each of them")
    return found[0]


def refuse_distributed(model: nn.Module, verb: str) -> None:
    """Raises ValueError for a model in DistributedDataParallel, which would not reduce Parameters made since."""
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise ValueError(
            f"{verb} changes which Parameters there are, and DistributedDataParallel goes on reducing those that it "
            f"was made with: call {verb} before wrapping the model"
        )


def layer_parts(model: nn.Module) -> list[tuple[nn.Module, LayerParts]]:
    """Every encoder layer of `model`, converted or not, with its parts."""
    family, base = find_base(model)
    return [
        (layer, layer.parts if isinstance(layer, EncoderLayer) else family.parts(layer, f"encoder.layer.{number}"))
        for number, layer in enumerate(base.encoder.layer)
    ]


def _no_adapter(what: str) -> str:
    known = ", ".join(f.BASE.__name__ for f in FAMILIES)
    return f"earlybert_kernels has no adapter for {what}; it takes {known} and the heads built on it"
