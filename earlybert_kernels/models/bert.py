"""The BERT family: `transformers.BertModel` and every head class on it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.bert import modeling_bert as hf
from transformers.utils.generic import can_return_tuple

from ..nn import LayerParts, Packing, make_packing
from ..ticket import Ticket
from . import bert_heads
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
    if config.hidden_act not in _ACTIVATIONS:
        raise ValueError(
            f"hidden_act={config.hidden_act!r} cannot be converted; the fused feed-forward computes "
            f"{', '.join(_ACTIVATIONS)}"
        )


def parts(layer: nn.Module, name: str) -> LayerParts:
    """The parts of a stock `BertLayer`.

    Raises:
        TypeError: a module is not the one transformers puts there, or carries hooks, which a fused layer
            would pass by; the message names it.
    """
    attention = layer.attention
    expected = {
        "": (layer, hf.BertLayer),
        ".attention": (attention, hf.BertAttention),
        ".attention.self": (attention.self, hf.BertSelfAttention),
        ".attention.self.query": (attention.self.query, nn.Linear),
        ".attention.self.key": (attention.self.key, nn.Linear),
        ".attention.self.value": (attention.self.value, nn.Linear),
        ".attention.output": (attention.output, hf.BertSelfOutput),
        ".attention.output.dense": (attention.output.dense, nn.Linear),
        ".attention.output.LayerNorm": (attention.output.LayerNorm, nn.LayerNorm),
        ".intermediate": (layer.intermediate, hf.BertIntermediate),
        ".intermediate.dense": (layer.intermediate.dense, nn.Linear),
        ".output": (layer.output, hf.BertOutput),
        ".output.dense": (layer.output.dense, nn.Linear),
        ".output.LayerNorm": (layer.output.LayerNorm, nn.LayerNorm),
    }
    for suffix, (module, cls) in expected.items():
        if type(module) is not cls:
            raise TypeError(f"{name}{suffix} is a {type(module).__name__}, expected a plain {cls.__name__}")
        if any(map(_is_foreign, [*module._forward_hooks.values(), *module._forward_pre_hooks.values()])):
            raise TypeError(f"{name}{suffix} carries forward hooks, which a fused layer would not run; remove them")
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
        activation=_ACTIVATIONS[layer.attention.self.config.hidden_act],
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

    Forwards are replaced on the instances alone, so that every class, and with it `save_pretrained`, pipelines
    and `Trainer`, stays what it was.

    Returns:
        A function that undoes it.
    """
    base.forward = functools.partial(packed_forward, base)
    handles, rerouted = [], [base]
    for head in model.modules():
        stock_class = COMPACT_CLASSES.stock(type(head))
        if stock_class in bert_heads.READS_FIRST_TOKEN:
            handles.append(head.register_forward_pre_hook(_first_token_only, with_kwargs=True))
        elif stock_class in bert_heads.FORWARDS:
            head.forward = functools.partial(bert_heads.FORWARDS[stock_class], head)
            rerouted.append(head)
    return functools.partial(_disconnect, handles, rerouted)


def encode(
    base: hf.BertModel,
    packing: Packing,
    input_ids: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    *,
    first_token_only: bool = False,
    hidden_states: list[Tensor] | None = None,
) -> Tensor:
    """Embeds and encodes the real tokens of a padded batch: `(B, S)` inputs -> `(T, E)`, or `(B, E)`.

    Padding goes before the embeddings; a token keeps the position that it has in its padded row.
    """
    shape = (packing.batch, packing.seq)
    if position_ids is None:
        position_ids = torch.arange(packing.seq, device=packing.cu_seqlens.device)
    position_ids = position_ids.expand(shape)
    packed = {
        name: None if value is None else packing.pack(value.expand(*shape, *value.shape[2:])).unsqueeze(0)
        for name, value in (
            ("input_ids", input_ids),
            ("token_type_ids", token_type_ids),
            ("position_ids", position_ids),
            ("inputs_embeds", inputs_embeds),
        )
    }
    x = base.embeddings(**packed).squeeze(0)
    return base.encoder(x, packing, first_token_only=first_token_only, hidden_states=hidden_states)


def batch_packing(
    attention_mask: Tensor | None, input_ids: Tensor | None, inputs_embeds: Tensor | None
) -> Packing:
    """The packing of a padded batch, from what a BERT forward is given.

    Raises:
        ValueError: not exactly one of the inputs was given, or the mask is not `(B, S)`.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
    tokens = input_ids if input_ids is not None else inputs_embeds
    batch, seq = tokens.shape[:2]
    if attention_mask is not None and tuple(attention_mask.shape) != (batch, seq):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; a converted model takes the padding mask "
            f"of the batch, ({batch}, {seq}), and no other"
        )
    return make_packing(attention_mask, batch, seq, tokens.device)


@can_return_tuple
def packed_forward(
    base: hf.BertModel,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    past_key_values=None,
    use_cache: bool | None = None,
    output_attentions: bool | None = None,
    output_hidden_states: bool | None = None,
    first_token_only: bool = False,
    **kwargs,
) -> BaseModelOutputWithPoolingAndCrossAttentions:
    """`BertModel.forward` without padding: same arguments, same outputs at every real token, zeros elsewhere.

    Args:
        first_token_only: what a head that reads only the pooled token sets: the last layer computes that token
            alone and `last_hidden_state` is `(B, 1, E)`. Ignored when hidden states are asked for.

    Raises:
        ValueError: attention weights, cross-attention or a cache are asked for, or a row has padding where
            the pooled token belongs.
    """
    config = base.config
    if output_attentions if output_attentions is not None else config.output_attentions:
        raise ValueError(
            "a converted model has no attention weights to return (output_attentions=True): they are never "
            "written to memory. Call earlybert_kernels.restore(model) first."
        )
    if encoder_hidden_states is not None or encoder_attention_mask is not None or past_key_values is not None:
        raise ValueError("a converted model is an encoder: it takes no encoder_hidden_states and no past_key_values")
    if output_hidden_states is None:
        output_hidden_states = config.output_hidden_states
    if not isinstance(output_hidden_states, bool):
        raise ValueError("a converted model takes output_hidden_states=True or False, not a selection of layers")

    packing = batch_packing(attention_mask, input_ids, inputs_embeds)
    pooled_is_padding = base.pooler is not None and packing.index is not None and not bool(attention_mask[:, 0].all())
    if pooled_is_padding:
        raise ValueError(
            "BERT pools the first token of a row, and in this batch a row begins with padding: "
            "pad on the right (tokenizer.padding_side = 'right')"
        )
    first_token_only = first_token_only and not output_hidden_states
    hidden_states = [] if output_hidden_states else None
    x = encode(
        base,
        packing,
        input_ids,
        token_type_ids,
        position_ids,
        inputs_embeds,
        first_token_only=first_token_only,
        hidden_states=hidden_states,
    )
    sequence_output = x.unsqueeze(1) if first_token_only else packing.pad(x)
    return BaseModelOutputWithPoolingAndCrossAttentions(
        last_hidden_state=sequence_output,
        pooler_output=None if base.pooler is None else base.pooler(sequence_output),
        hidden_states=None if hidden_states is None else tuple(packing.pad(h) for h in hidden_states),
    )


def _first_token_only(head: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    return args, {**kwargs, "first_token_only": True}


def _disconnect(handles: list, rerouted: list[nn.Module]) -> None:
    for handle in handles:
        handle.remove()
    for module in rerouted:
        del module.forward


def _is_foreign(hook: Callable) -> bool:
    """Whether a hook is neither our gates' nor the one with which transformers records outputs of stock layers."""
    function = hook.func if isinstance(hook, functools.partial) else hook
    return not function.__module__.startswith(("transformers.utils.output_capturing", "earlybert_kernels."))
