"""ELECTRA: `transformers.ElectraModel`, discriminator or generator, and every head class on it."""

from typing import Any

from torch import Tensor
from transformers import BertTokenizer, ElectraConfig
from transformers.models.electra import modeling_electra as hf

from .bert_like import ACTIVATIONS, SIZE_FIELDS, bert_layer, task_heads
from .family import Decoder, Embeddings, Head, Labels, ModelFamily, Rows


def _transform(model: Any, hidden: Tensor) -> Tensor:
    return model.generator_predictions(hidden)


FAMILY = ModelFamily(
    name="ELECTRA",
    config=ElectraConfig,
    tokenizer=BertTokenizer,
    pretrained=hf.ElectraPreTrainedModel,
    base=hf.ElectraModel,
    encoder="encoder",
    encoder_class=hf.ElectraEncoder,
    layer=bert_layer(hf, "Electra"),
    embeddings=Embeddings(hf.ElectraEmbeddings),
    embeddings_projection=lambda base: getattr(base, "embeddings_project", None),
    needed={"summary_type": "first"},
    activations=ACTIVATIONS,
    size_fields={
        "classifier.dense": "hidden_size",
        "embeddings.LayerNorm": "embedding_size",
        "embeddings_project": "embedding_size",
        "generator_lm_head": "vocab_size",
        "generator_predictions": "embedding_size",
        **SIZE_FIELDS,
    },
    heads=(
        Head(hf.ElectraForPreTraining, "AutoModelForPreTraining", Rows.ALL, Labels.TOKEN),
        Head(hf.ElectraForCausalLM, "AutoModelForCausalLM", Rows.ALL, Labels.NEXT_TOKEN),
        Head(
            hf.ElectraForMaskedLM,
            "AutoModelForMaskedLM",
            Rows.ALL,
            Labels.TOKEN,
            Decoder(_transform, "generator_lm_head"),
        ),
        *task_heads(hf, "Electra", classifier="classifier.out_proj"),
    ),
)
