"""DistilBERT: `transformers.DistilBertModel` and every head class on it."""

from typing import Any

from torch import Tensor
from transformers import BertTokenizer, DistilBertConfig
from transformers.models.distilbert import modeling_distilbert as hf

from .bert_like import ACTIVATIONS, task_heads
from .family import Decoder, Embeddings, Head, Labels, Layer, ModelFamily, Rows


def _transform(model: Any, hidden: Tensor) -> Tensor:
    return model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))


FAMILY = ModelFamily(
    name="DistilBERT",
    config=DistilBertConfig,
    tokenizer=BertTokenizer,
    pretrained=hf.DistilBertPreTrainedModel,
    base=hf.DistilBertModel,
    encoder="transformer",
    encoder_class=hf.Transformer,
    layer=Layer(
        classes={"": hf.TransformerBlock, "attention": hf.DistilBertSelfAttention, "ffn": hf.FFN},
        parts={
            "self_attention": "attention",
            "query": "attention.q_lin",
            "key": "attention.k_lin",
            "value": "attention.v_lin",
            "attention_dropout": "attention.dropout",
            "attention_output": "attention.out_lin",
            "attention_norm": "sa_layer_norm",
            "intermediate": "ffn.lin1",
            "output": "ffn.lin2",
            "output_norm": "output_layer_norm",
            "output_dropout": "ffn.dropout",
        },
        activation="ffn.activation",
        heads="n_heads",
        width="dim",
    ),
    embeddings=Embeddings(hf.Embeddings, token_type=None),
    activations=ACTIVATIONS,
    activation_field="activation",
    neurons_field="hidden_dim",
    size_fields={
        "word_embeddings": "vocab_size",
        "position_embeddings": "max_position_embeddings",
        "vocab_projector": "vocab_size",
        "lin1": "hidden_dim",
        "lin2.weight": "hidden_dim",
        "pre_classifier": "dim",
        "classifier": "num_labels",
    },
    heads=(
        Head(
            hf.DistilBertForMaskedLM,
            "AutoModelForMaskedLM",
            Rows.ALL,
            Labels.TOKEN,
            Decoder(_transform, "vocab_projector"),
        ),
        *task_heads(hf, "DistilBert"),
    ),
)
