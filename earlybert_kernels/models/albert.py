"""ALBERT: `transformers.AlbertModel` and every head class on it; its one layer has one ticket and one set of gates."""

from typing import Any

from torch import Tensor, nn
from transformers import AlbertConfig, AlbertTokenizer
from transformers.models.albert import modeling_albert as hf

from .bert_like import ACTIVATIONS, SIZE_FIELDS, task_heads
from .family import Decoder, Embeddings, Head, Labels, Layer, ModelFamily, Rows


def _pool(base: Any, first: Tensor) -> Tensor:
    return base.pooler_activation(base.pooler(first.squeeze(1)))


def _transform(model: Any, hidden: Tensor) -> Tensor:
    head = model.predictions
    return head.LayerNorm(head.activation(head.dense(hidden)))


FAMILY = ModelFamily(
    name="ALBERT",
    config=AlbertConfig,
    tokenizer=AlbertTokenizer,
    pretrained=hf.AlbertPreTrainedModel,
    base=hf.AlbertModel,
    encoder="encoder.albert_layer_groups.0.albert_layers",
    encoder_class=nn.ModuleList,
    around={"encoder": hf.AlbertTransformer, "encoder.albert_layer_groups.0": hf.AlbertLayerGroup},
    layer=Layer(
        classes={"": hf.AlbertLayer, "attention": hf.AlbertAttention},
        parts={
            "self_attention": "attention",
            "query": "attention.query",
            "key": "attention.key",
            "value": "attention.value",
            "attention_dropout": "attention.attention_dropout",
            "attention_output": "attention.dense",
            "attention_norm": "attention.LayerNorm",
            "attention_output_dropout": "attention.output_dropout",
            "intermediate": "ffn",
            "output": "ffn_output",
            "output_norm": "full_layer_layer_norm",  # before which nothing is dropped out
        },
        activation="activation",
    ),
    shares_layer=True,
    embeddings=Embeddings(hf.AlbertEmbeddings),
    embeddings_projection=lambda base: base.encoder.embedding_hidden_mapping_in,
    pool=_pool,
    needed={"num_hidden_groups": 1, "inner_group_num": 1},
    activations=ACTIVATIONS,
    size_fields={
        "embeddings.LayerNorm": "embedding_size",
        "embedding_hidden_mapping_in": "embedding_size",
        **SIZE_FIELDS,
        "predictions": "embedding_size",
        "ffn": "intermediate_size",
    },
    heads=(
        Head(hf.AlbertForPreTraining, "AutoModelForPreTraining", Rows.ALL_AND_POOLED, Labels.TOKEN),
        Head(
            hf.AlbertForMaskedLM,
            "AutoModelForMaskedLM",
            Rows.ALL,
            Labels.TOKEN,
            Decoder(_transform, "predictions.decoder"),
        ),
        *task_heads(hf, "Albert"),
    ),
)
