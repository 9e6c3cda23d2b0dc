"""What BERT and the families made after it have in common: children of the same names, heads for the same tasks."""

from __future__ import annotations

from typing import Any

from .family import Head, Labels, Layer, Rows

#: The activations of transformers that the ops know, by their names there.
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}

#: By a part of a Parameter's name, the config's field that says how large it is.
SIZE_FIELDS = {
    "word_embeddings": "vocab_size",
    "position_embeddings": "max_position_embeddings",
    "token_type_embeddings": "type_vocab_size",
    "predictions.bias": "vocab_size",
    "decoder": "vocab_size",
    "intermediate": "intermediate_size",
    "classifier": "num_labels",
}


def bert_layer(hf: Any, prefix: str) -> Layer:
    """An encoder layer as BERT's, of the classes in transformers' module `hf` whose names begin with `prefix`."""
    names = {
        "": "Layer",
        "attention": "Attention",
        "attention.self": "SelfAttention",
        "attention.output": "SelfOutput",
        "intermediate": "Intermediate",
        "output": "Output",
    }
    return Layer(
        classes={path: getattr(hf, prefix + name) for path, name in names.items()},
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
    )


def task_heads(hf: Any, prefix: str, *, classifier: str = "classifier") -> tuple[Head, ...]:
    """The heads that are fine-tuned, which every family has; `classifier` is the path of the first one's last layer."""
    first = getattr(hf, f"{prefix}ForSequenceClassification")
    choice = getattr(hf, f"{prefix}ForMultipleChoice")
    token = getattr(hf, f"{prefix}ForTokenClassification")
    answer = getattr(hf, f"{prefix}ForQuestionAnswering")
    return (
        Head(first, "AutoModelForSequenceClassification", Rows.FIRST, classifier=classifier),
        Head(choice, "AutoModelForMultipleChoice", Rows.FIRST, takes_packed=False),
        Head(token, "AutoModelForTokenClassification", Rows.ALL, Labels.TOKEN),
        Head(answer, "AutoModelForQuestionAnswering", Rows.ALL, Labels.SPAN),
    )
