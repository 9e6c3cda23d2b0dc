"""BERT: `transformers.BertModel` and every head class on it."""

from transformers import BertConfig, BertTokenizer
from transformers.models.bert import modeling_bert as hf

from .bert_like import ACTIVATIONS, SIZE_FIELDS, bert_layer, task_heads
from .family import Decoder, Embeddings, Head, Labels, ModelFamily, Rows

FAMILY = ModelFamily(
    name="BERT",
    config=BertConfig,
    tokenizer=BertTokenizer,
    pretrained=hf.BertPreTrainedModel,
    base=hf.BertModel,
    encoder="encoder",
    encoder_class=hf.BertEncoder,
    layer=bert_layer(hf, "Bert"),
    embeddings=Embeddings(hf.BertEmbeddings),
    activations=ACTIVATIONS,
    size_fields=SIZE_FIELDS,
    heads=(
        Head(hf.BertForPreTraining, "AutoModelForPreTraining", Rows.ALL_AND_POOLED, Labels.TOKEN),
        Head(hf.BertLMHeadModel, "AutoModelForCausalLM", Rows.ALL, Labels.NEXT_TOKEN),
        Head(
            hf.BertForMaskedLM,
            "AutoModelForMaskedLM",
            Rows.ALL,
            Labels.TOKEN,
            Decoder(lambda model, hidden: model.cls.predictions.transform(hidden), "cls.predictions.decoder"),
        ),
        Head(hf.BertForNextSentencePrediction, "AutoModelForNextSentencePrediction", Rows.FIRST),
        *task_heads(hf, "Bert"),
    ),
)
