"""The model families, and which of them a model is of."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from .bert import BERT
from .family import Head, ModelFamily

#: Adding a family is writing down its value, in a module of its own, and naming it here.
FAMILIES: tuple[ModelFamily, ...] = (BERT,)


def find_base(model: nn.Module) -> tuple[ModelFamily, PreTrainedModel]:
    """The family of `model` and its one base model (`BertModel`, say), which may be `model` itself.

    Raises:
        TypeError: there is no base model of a known family in it, or more than one, or `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model (a torch.nn.Module), found {type(model).__name__}")
    found = [(f, m) for f in FAMILIES for m in model.modules() if isinstance(m, f.base)]
    if not found:
        raise TypeError(_no_adapter(type(model).__name__))
    if len(found) > 1:
        raise TypeError(f"{type(model).__name__} holds {len(found)} encoders; call this on each of them")
    return found[0]


def family_of(module: nn.Module) -> ModelFamily:
    """The family of a base model or a head of it."""
    return next(family for family in FAMILIES if isinstance(module, family.pretrained))


def family_of_type(model_type: str) -> ModelFamily:
    """The family of a stock or compact model type.

    Raises:
        TypeError: there is none.
    """
    for family in FAMILIES:
        if model_type in (family.model_type, family.compact_type):
            return family
    raise TypeError(_no_adapter(f"models of type {model_type!r}"))


def head_of(module: nn.Module) -> Head | None:
    """The head of a known family that `module` is; see `ModelFamily.head_of`."""
    for family in FAMILIES:  # torch 2.11's Dynamo does not trace a generator that assigns
        head = family.head_of(module)
        if head is not None:
            return head
    return None


def _no_adapter(what: str) -> str:
    known = ", ".join(family.base.__name__ for family in FAMILIES)
    return f"earlybert_kernels has no adapter for {what}; it takes {known} and the heads built on it"
