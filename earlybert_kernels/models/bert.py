"""BERT: `transformers.BertModel` and every head class on it."""

from transformers import BertConfig, BertTokenizer
from transformers.models.bert import modeling_bert as hf

from .family import Decoder, Embeddings, Head, Labels, Layer, ModelFamily, Rows

BERT = ModelFamily(
    name="BERT",
    config=BertConfig,
    tokenizer=BertTokenizer,
    pretrained=hf.BertPreTrainedModel,
    base=hf.BertModel,
    encoder="encoder",
    encoder_class=hf.BertEncoder,
    layer=Layer(
        classes={
            "": hf.BertLayer,
            "attention": hf.BertAttention,
            "attention.self": hf.BertSelfAttention,
            "attention.output": hf.BertSelfOutput,
            "intermediate": hf.BertIntermediate,
            "output": hf.BertOutput,
        },
        parts={
            "self_attention": "attention.self",
            "query": "attention.self.query",
            "key": "attention.self.key",
            "value": "attention.self.value",
            "attention_dropout": "attention.self.dropout",
            "attention_output": "attention.output.dense",
            "attention_norm": "attention.output.LayerNorm",
            "attention_output_dropout": "attention.output.dropout",
            "intermediate": "intermediate.dense",
            "output": "output.dense",
            "output_norm": "output.LayerNorm",
            "output_dropout": "output.dropout",
        },
        activation="intermediate.intermediate_act_fn",
    ),
    embeddings=Embeddings(hf.BertEmbeddings),
    activations={"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"},
    size_fields={
        "word_embeddings": "vocab_size",
        "position_embeddings": "max_position_embeddings",
        "token_type_embeddings": "type_vocab_size",
        "predictions.bias": "vocab_size",
        "decoder": "vocab_size",
        "intermediate": "intermediate_size",
        "classifier": "num_labels",
    },
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
        Head(hf.BertForSequenceClassification, "AutoModelForSequenceClassification", Rows.FIRST),
        Head(hf.BertForMultipleChoice, "AutoModelForMultipleChoice", Rows.FIRST, takes_packed=False),
        Head(hf.BertForTokenClassification, "AutoModelForTokenClassification", Rows.ALL, Labels.TOKEN),
        Head(hf.BertForQuestionAnswering, "AutoModelForQuestionAnswering", Rows.ALL, Labels.SPAN),
    ),
)
