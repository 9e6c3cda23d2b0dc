"""ModernBERT: `transformers.ModernBertModel` and every head class on it."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers import ModernBertConfig, PreTrainedTokenizerFast
from transformers.models.modernbert import modeling_modernbert as hf

from ..nn import PreNormParts
from .bert_like import ACTIVATIONS, task_heads
from .family import Decoder, Embeddings, Head, Labels, Layer, ModelFamily, Rows


def _transform(model: Any, hidden: Tensor) -> Tensor:
    return model.head(hidden)


def _facts(layer: Any) -> dict[str, Any]:
    own = layer.attn
    return {
        "window": None if own.sliding_window is None else own.sliding_window - 1,  # theirs is the first place too far
        "attention_dropout_p": own.attention_dropout,
        "positions": layer.attention_type,
    }


def _averages(config: ModernBertConfig) -> bool:
    return config.classifier_pooling == "mean"


FAMILY = ModelFamily(
    name="ModernBERT",
    config=ModernBertConfig,
    tokenizer=PreTrainedTokenizerFast,
    pretrained=hf.ModernBertPreTrainedModel,
    base=hf.ModernBertModel,
    encoder="layers",
    encoder_class=nn.ModuleList,
    layer=Layer(
        classes={"": hf.ModernBertEncoderLayer, "attn": hf.ModernBertAttention, "mlp": hf.ModernBertMLP},
        parts={
            "self_attention": "attn",
            "attention_norm": "attn_norm",
            "query_key_value": "attn.Wqkv",
            "attention_output": "attn.Wo",
            "attention_output_dropout": "attn.out_drop",
            "feed_forward_norm": "mlp_norm",
            "input_and_gate": "mlp.Wi",
            "neuron_dropout": "mlp.drop",
            "output": "mlp.Wo",
        },
        activation="mlp.act",
        kind=PreNormParts,
        facts=_facts,
        head_size="head_dim",
        heads=None,
        width=None,
    ),
    embeddings=Embeddings(
        hf.ModernBertEmbeddings, word="tok_embeddings", position=None, token_type=None, norm="norm", dropout="drop"
    ),
    rotary="rotary_emb",
    final_norm="final_norm",
    activations=ACTIVATIONS,
    activation_field="hidden_activation",
    size_fields={
        "tok_embeddings": "vocab_size",
        "decoder": "vocab_size",
        "mlp": "intermediate_size",
        "classifier": "num_labels",
    },
    heads=(
        Head(hf.ModernBertForMaskedLM, "AutoModelForMaskedLM", Rows.ALL, Labels.TOKEN, Decoder(_transform, "decoder")),
        *(replace(head, averages=_averages) for head in task_heads(hf, "ModernBert")),
    ),
)
