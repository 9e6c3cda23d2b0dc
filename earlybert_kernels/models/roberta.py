"""RoBERTa: `transformers.RobertaModel` and every head class on it."""

from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, RobertaConfig, RobertaTokenizer
from transformers.activations import gelu
from transformers.models.roberta import modeling_roberta

from .bert_like import ACTIVATIONS, SIZE_FIELDS, bert_layer, task_heads
from .family import Decoder, Embeddings, Head, Labels, ModelFamily, Rows


def roberta_family(
    name: str,
    hf: Any,
    prefix: str,
    config: type[PreTrainedConfig],
    tokenizer: type[PreTrainedTokenizerBase],
) -> ModelFamily:
    """A family whose classes are RoBERTa's under another name.

    Args:
        name: what messages call it.
        hf: transformers' module of its classes.
        prefix: what their names begin with.
        config, tokenizer: its classes of these.
    """

    def of(suffix: str) -> Any:
        return getattr(hf, prefix + suffix)

    return ModelFamily(
        name=name,
        config=config,
        tokenizer=tokenizer,
        pretrained=of("PreTrainedModel"),
        base=of("Model"),
        encoder="encoder",
        encoder_class=of("Encoder"),
        layer=bert_layer(hf, prefix),
        embeddings=Embeddings(of("Embeddings")),
        counts_tokens=True,
        activations=ACTIVATIONS,
        size_fields={"classifier.dense": "hidden_size", "lm_head.bias": "vocab_size", **SIZE_FIELDS},
        heads=(
            Head(of("ForCausalLM"), "AutoModelForCausalLM", Rows.ALL, Labels.NEXT_TOKEN),
            Head(
                of("ForMaskedLM"),
                "AutoModelForMaskedLM",
                Rows.ALL,
                Labels.TOKEN,
                Decoder(_transform, "lm_head.decoder"),
            ),
            *task_heads(hf, prefix, classifier="classifier.out_proj"),
        ),
    )


def _transform(model: Any, hidden: Tensor) -> Tensor:
    return model.lm_head.layer_norm(gelu(model.lm_head.dense(hidden)))


FAMILY = roberta_family("RoBERTa", modeling_roberta, "Roberta", RobertaConfig, RobertaTokenizer)
