"""The model families, and which of them a model is of. One is imported when a model of it is there or is loaded."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

from torch import nn
from transformers import PreTrainedModel

from .family import Head, ModelFamily, compact_type

#: The model types of stock models that there is a family for. Adding one is writing down its value, `FAMILY`, in a
#: module that is named after it, as transformers names its own, and naming it here.
MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "albert", "modernbert")

#: Model types that are like those and are refused, and why.
REFUSED = {
    "mpnet": "MPNet adds a learned bias to the score of every two tokens, by their distance, which the fused attention "
    "does not take"
}

_loaded: dict[str, ModelFamily] = {}
_on_load: list[Callable[[ModelFamily], None]] = []


def families() -> list[ModelFamily]:
    """All of them."""
    return list(map(_load, MODEL_TYPES))


def when_loaded(prepare: Callable[[ModelFamily], None]) -> None:
    """Has every family prepared, once it is loaded, before it is used."""
    _on_load.append(prepare)
    for family in _loaded.values():
        prepare(family)


def find_base(model: nn.Module) -> tuple[ModelFamily, PreTrainedModel]:
    """The family of `model` and its one base model (`BertModel`, say), which may be `model` itself.

    Raises:
        TypeError: there is no base model of a known family in it, or more than one, or `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model (a torch.nn.Module), found {type(model).__name__}")
    # A model's classes have been imported, or it would not be there.
    present = [_load(model_type) for model_type in MODEL_TYPES if _modelling(model_type) in sys.modules]
    found = [(f, m) for f in present for m in model.modules() if isinstance(m, f.base)]
    if not found:
        types = (getattr(getattr(module, "config", None), "model_type", None) for module in model.modules())
        raise TypeError(_no_adapter(type(model).__name__, next((name for name in types if name in REFUSED), None)))
    if len(found) > 1:
        raise TypeError(f"{type(model).__name__} holds {len(found)} encoders; call this on each of them")
    return found[0]


def family_of(module: nn.Module) -> ModelFamily:
    """The family of a base model or a head of it, which `find_base` has found or which is a compact one."""
    return next(family for family in _loaded.values() if isinstance(module, family.pretrained))


def family_of_type(model_type: str) -> ModelFamily:
    """The family of a stock or compact model type.

    Raises:
        TypeError: there is none.
    """
    for stock_type in MODEL_TYPES:
        if model_type in (stock_type, compact_type(stock_type)):
            return _load(stock_type)
    raise TypeError(_no_adapter(f"models of type {model_type!r}", model_type))


def head_of(module: nn.Module) -> Head | None:
    """The head of a known family that `module` is; see `ModelFamily.head_of`."""
    for family in _loaded.values():  # torch 2.11's Dynamo does not trace a generator that assigns
        head = family.head_of(module)
        if head is not None:
            return head
    return None


def _load(model_type: str) -> ModelFamily:
    if model_type not in _loaded:
        family = importlib.import_module(f".{_module_name(model_type)}", __package__).FAMILY
        _loaded[model_type] = family
        for prepare in _on_load:
            prepare(family)
    return _loaded[model_type]


def _module_name(model_type: str) -> str:
    return model_type.replace("-", "_")


def _modelling(model_type: str) -> str:
    """The module of transformers with the family's classes."""
    name = _module_name(model_type)
    return f"transformers.models.{name}.modeling_{name}"


def _no_adapter(what: str, model_type: str | None) -> str:
    known = ", ".join(family.base.__name__ for family in families())
    reason = f": {REFUSED[model_type]}" if model_type in REFUSED else ""
    return f"earlybert_kernels has no adapter for {what}{reason}; it takes {known} and the heads built on them"
