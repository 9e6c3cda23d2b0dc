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
from .bert_forward import packed_forward
from .compact_bert import COMPACT_CLASSES, CompactBertConfig
from .compact_bert import set_compact as set_compact  # one of the functions of a family

BASE = hf.BertModel
MODEL_TYPES = ("bert", "compact_bert")

# Names that transformers gives the activations that the ops know.
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


def check_config(config) -> None:
    """Raises ValueError for variants of BERT that the fused layers do not compute."""
    if config.is_decoder or config.add_cross_attention:
        raise ValueError(
            "a BERT decoder (config.is_decoder or config.add_cross_attention) cannot be converted: the fused "
            "attention is bidirectional self-attention"
        )
    position_embedding = getattr(config, "position_embedding_type", None) or "absolute"
    if position_embedding != "absolute":
        raise ValueError(
            f"position_embedding_type={position_embedding!r} is not what transformers 5 builds: it leaves the relative "
            "positions of a checkpoint out without a word. Use transformers 4, or a checkpoint with absolute positions"
        )
    if getattr(config, "pruned_heads", None):
        raise ValueError(
            "the config states pruned_heads, which transformers 5 ignores: the model it builds has all heads and does "
            "not fit the checkpoint's weights"
        )
    if config.hidden_act not in _ACTIVATIONS:
        raise ValueError(
            f"hidden_act={config.hidden_act!r} cannot be converted; the fused feed-forward computes "
            f"{', '.join(_ACTIVATIONS)}"
        )


def check_base(base: hf.BertModel) -> None:
    """Raises TypeError if a base model does more than `BertModel`, which its fused forward would leave out."""
    if type(base).forward is not hf.BertModel.forward:
        raise TypeError(f"{class_name(base)} has a forward of its own, which a converted model would not run")
    _check_plain("encoder", base.encoder, hf.BertEncoder)


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
        _check_plain(name + suffix, module, cls)
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
        activation=_ACTIVATIONS[hidden_act],
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


def class_name(module: object) -> str:
    """The whole name of an object's class: many libraries call theirs `Linear`."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _check_plain(name: str, module: nn.Module, cls: type) -> None:
    if type(module) is not cls:
        advice = ""
        if type(module).__module__.startswith("peft."):
            advice = "; merge the adapter first (model = model.merge_and_unload())"
        raise TypeError(f"{name} is a {class_name(module)}, expected a plain {cls.__module__}.{cls.__name__}{advice}")
    if any(map(_is_foreign, [*module._forward_hooks.values(), *module._forward_pre_hooks.values()])):
        raise TypeError(f"{name} carries forward hooks, which a converted model would not run; remove them")


def _is_foreign(hook: Callable) -> bool:
    """Whether a hook is neither our gates' nor the one with which transformers records outputs of stock layers."""
    function = hook.func if isinstance(hook, functools.partial) else hook
    return not function.__module__.startswith(("transformers.utils.output_capturing", "earlybert_kernels."))
