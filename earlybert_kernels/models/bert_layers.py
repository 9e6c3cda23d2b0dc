"""What a stock layer of a BERT is made of."""

from __future__ import annotations

from torch import nn
from transformers.activations import ACT2FN
from transformers.models.bert import modeling_bert as hf

from ..nn import LayerParts
from .bert_checks import ACTIVATIONS, check_attention, check_plain


def parts(layer: nn.Module, name: str) -> LayerParts:
    """The parts of a stock `BertLayer`.

    Raises:
        TypeError: a module is not the one transformers puts there, or carries hooks, which a fused layer
            would pass by; the message names it.
        ValueError: the attention is causal or scales its scores in a way of its own.
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
    check_attention(f"{name}.attention.self", attention.self)
    return LayerParts(
        self_attention=attention.self,
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
