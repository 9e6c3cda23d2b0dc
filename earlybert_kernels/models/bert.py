"""The BERT family: `transformers.BertModel` and every head class on it."""

from __future__ import annotations

import copy
import functools
import inspect

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.models.bert import modeling_bert as hf

from ..ticket import Ticket
from . import bert_heads
from .bert_checks import check_agreement as check_agreement  # these are functions of a family
from .bert_checks import check_base as check_base
from .bert_checks import check_config as check_config
from .bert_checks import check_plain
from .bert_forward import packed_forward
from .bert_layers import parts as parts
from .bert_layers import resized as resized
from .compact_bert import set_compact as set_compact
from .compact_bert import set_gated as set_gated
from .compact_classes import COMPACT_CLASSES
from .compact_config import CompactBertConfig

BASE = hf.BertModel
MODEL_TYPES = ("bert", "compact_bert")


def check_encoder(base: hf.BertModel) -> None:
    """Raises TypeError unless a base model that is not converted has the encoder that transformers gives it."""
    check_plain("encoder", base.encoder, hf.BertEncoder)
    if "forward" in vars(base):
        raise TypeError(
            f"a forward was put on this {type(base).__name__} (to run it under autocast, say), which a converted model "
            "would not run: convert it first, then wrap its forward"
        )


def check_compactable(model: nn.Module, base: hf.BertModel) -> None:
    """Raises TypeError if a transformers class in the model has no compact counterpart to be saved and loaded as."""
    for module in model.modules():
        if isinstance(module, hf.BertPreTrainedModel) and COMPACT_CLASSES.compact(type(module)) is None:
            raise TypeError(
                f"{type(module).__name__} has no compact class, so a compact one could not be loaded again; "
                f"compact takes {', '.join(sorted(c.__name__ for c in COMPACT_CLASSES))}"
            )


def dense_ticket(base: hf.BertModel) -> Ticket:
    """The units that the model has, as indices of the dense model it came from."""
    config = base.config
    if isinstance(config, CompactBertConfig):
        return config.ticket
    heads, neurons = range(config.num_attention_heads), range(config.intermediate_size)
    return Ticket([heads] * config.num_hidden_layers, [neurons] * config.num_hidden_layers)


def dense_stock(model: nn.Module, base: hf.BertModel) -> nn.Module:
    """A new, untrained model of the stock class and dense shapes of `model`.

    Raises:
        TypeError: `model` is not a transformers model.
    """
    if not isinstance(model, hf.BertPreTrainedModel):
        raise TypeError(f"{type(model).__name__} is not a transformers model; call this on the BERT inside it")
    config = base.config.dense() if isinstance(base.config, CompactBertConfig) else copy.deepcopy(base.config)
    cls = COMPACT_CLASSES.stock(type(model))
    arguments = {"add_pooling_layer": model.pooler is not None} if cls is hf.BertModel else {}
    return cls(config, **arguments)


def check_heads(model: nn.Module) -> None:
    """Raises TypeError for heads of classes with a forward of their own, in which padding would count as zeros."""
    for module in model.modules():
        if isinstance(module, bert_heads.SCORES_TOKENS) and bert_heads.stock_class(module) is None:
            raise TypeError(
                f"{type(module).__qualname__} has a forward of its own, in which padding might be scored, as zeros: "
                "convert the BertModel inside it (earlybert_kernels.convert(model.bert)), whose output is 0 there, if "
                "that is what its loss leaves out"
            )


#: A module that runs packed tokens, and the handle of the hook that prepares what it is called with.
Connection = tuple[nn.Module, RemovableHandle | None]


def connect(base: hf.BertModel, model: nn.Module, connected: list[Connection]) -> None:
    """Routes the base model, and the heads in `model` that gain by it, through packed tokens.

    Forwards are replaced on the instances alone: every class, and with it what `save_pretrained`, pipelines and
    `Trainer` find out about the model, stays what it was. A forward that was on a head already (Accelerate's, under
    autocast) is what the new one calls.

    Args:
        connected: what has been connected, to which the rest is added.
    """
    before = {module for module, _ in connected}
    if base not in before:
        base.forward = functools.partial(packed_forward, base)
        connected.append((base, None))
    for head in model.modules():
        if head in before or (stock_class := bert_heads.stock_class(head)) is None:
            continue
        names = tuple(inspect.signature(stock_class.forward).parameters)[1:-1]  # neither self nor **kwargs
        prepare = functools.partial(bert_heads.prepare, names)
        connected.append((head, head.register_forward_pre_hook(prepare, with_kwargs=True)))
        if stock_class in bert_heads.FORWARDS:
            head.forward = functools.partial(bert_heads.FORWARDS[stock_class], head, vars(head).get("forward"))


def disconnect(connected: list[Connection]) -> None:
    """Undoes `connect`. A forward that was wrapped since stays: what it calls sees that the model is restored."""
    for module, handle in connected:
        if handle is not None:
            handle.remove()
        forward = vars(module).get("forward")
        if not isinstance(forward, functools.partial) or forward.func not in _FORWARDS:
            continue
        _, *previous = forward.args
        del module.forward
        if previous and previous[0] is not None:
            module.forward = previous[0]


_FORWARDS = (packed_forward, *bert_heads.FORWARDS.values())
