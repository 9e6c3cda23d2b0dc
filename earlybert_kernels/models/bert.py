"""The BERT family: `transformers.BertModel` and every head class on it."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable

from torch import nn
from transformers.activations import ACT2FN
from transformers.models.bert import modeling_bert as hf

from ..nn import LayerParts
from ..ticket import Ticket
from . import bert_heads
from .bert_checks import ACTIVATIONS, check_plain
from .bert_checks import check_agreement as check_agreement  # these are functions of a family
from .bert_checks import check_base as check_base
from .bert_checks import check_config as check_config
from .bert_forward import packed_forward
from .compact_bert import COMPACT_CLASSES, CompactBertConfig
from .compact_bert import set_compact as set_compact
from .compact_bert import set_gated as set_gated

BASE = hf.BertModel
MODEL_TYPES = ("bert", "compact_bert")


def check_encoder(base: hf.BertModel) -> None:
    """Raises TypeError unless a base model that is not converted has the encoder that transformers gives it."""
    check_plain("encoder", base.encoder, hf.BertEncoder)


def parts(layer: nn.Module, name: str) -> LayerParts:
    """The parts of a stock `BertLayer`.

    Raises:
        TypeError: a module is not the one transformers puts there, or carries hooks, which a fused layer
            would pass by; the message names it.
    """
    attention = layer.attention
    hidden_act = attention.self.config.hidden_act
    activation = type(ACT2FN[hidden_act])
    expected = {
        "": (layer, hf.BertLayer),
        ".attention": (attention, hf.BertAttention),
        ".attention.self": (attention.self, hf.BertSelfAttention),
        ".attention.self.query": (attention.self.query, nn.Linear),
        ".attention.self.key": (attention.self.key, nn.Linear),
        ".attention.self.value": (attention.self.value, nn.Linear),
        ".attention.self.dropout": (attention.self.dropout, nn.Dropout),
        ".attention.output": (attention.output, hf.BertSelfOutput),
        ".attention.output.dense": (attention.output.dense, nn.Linear),
        ".attention.output.LayerNorm": (attention.output.LayerNorm, nn.LayerNorm),
        ".attention.output.dropout": (attention.output.dropout, nn.Dropout),
        ".intermediate": (layer.intermediate, hf.BertIntermediate),
        ".intermediate.dense": (layer.intermediate.dense, nn.Linear),
        ".intermediate.intermediate_act_fn": (layer.intermediate.intermediate_act_fn, activation),
        ".output": (layer.output, hf.BertOutput),
        ".output.dense": (layer.output.dense, nn.Linear),
        ".output.LayerNorm": (layer.output.LayerNorm, nn.LayerNorm),
        ".output.dropout": (layer.output.dropout, nn.Dropout),
    }
    for suffix, (module, cls) in expected.items():
        check_plain(name + suffix, module, cls)
    return LayerParts(
        query=attention.self.query,
        key=attention.self.key,
        value=attention.self.value,
        attention_output=attention.output.dense,
        attention_norm=attention.output.LayerNorm,
        attention_dropout=attention.self.dropout,
        attention_output_dropout=attention.output.dropout,
        intermediate=layer.intermediate.dense,
        output=layer.output.dense,
        output_norm=layer.output.LayerNorm,
        output_dropout=layer.output.dropout,
        head_size=attention.self.attention_head_size,
        activation=ACTIVATIONS[hidden_act],
    )


def resized(layer: nn.Module, layer_parts: LayerParts) -> None:
    """Tells the modules of a layer, stock or converted, how many heads it has after a cut."""
    attention = layer.attention.self
    attention.num_attention_heads = layer_parts.num_heads
    attention.all_head_size = layer_parts.num_heads * layer_parts.head_size


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


def connect(base: hf.BertModel, model: nn.Module) -> Callable[[], None]:
    """Routes the base model, and the heads in `model` that gain by it, through packed tokens.

    Forwards are replaced on the instances alone: every class, and with it what `save_pretrained`, pipelines and
    `Trainer` find out about the model, stays what it was.

    Returns:
        A function that undoes it.
    """
    pooled_is_read = any(bert_heads.stock_class(head) in bert_heads.READS_POOLED_TOKEN for head in model.modules())
    base.forward = functools.partial(packed_forward, base, pooled_is_read=pooled_is_read)
    handles, rerouted = [], [base]
    for head in model.modules():
        if (stock_class := bert_heads.stock_class(head)) is None:
            continue
        names = tuple(inspect.signature(stock_class.forward).parameters)[1:-1]  # neither self nor **kwargs
        prepare = functools.partial(bert_heads.prepare, names)
        handles.append(head.register_forward_pre_hook(prepare, with_kwargs=True))
        if stock_class in bert_heads.FORWARDS:
            head.forward = functools.partial(bert_heads.FORWARDS[stock_class], head)
            rerouted.append(head)
    return functools.partial(_disconnect, handles, rerouted)


def _disconnect(handles: list, rerouted: list[nn.Module]) -> None:
    for handle in handles:
        handle.remove()
    for module in rerouted:
        del module.forward
