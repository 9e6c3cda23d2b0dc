"""A stock BERT on packed batches: what stays of transformers' modules where torch's packed attention is put in."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, BertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from .. import varlen

#: The attention's name in transformers' registry.
_ATTENTION = "bench_flash_varlen"


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **options: Any
) -> tuple[Tensor, None]:
    """As transformers calls it: `(1, H, T, D)` each, and what the batch says of its sequences; `(1, T, H, D)`."""
    q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    out = varlen.attention(
        "flash-varlen",
        *(q, k, v),
        *(options["cu_seq_lens_q"], options["max_length_q"]),
        dropout_p=options["dropout"],
        scale=options["scaling"],
    )
    return out.unsqueeze(0), None


AttentionInterface.register(_ATTENTION, _attention)


class UnpaddedClassifier(nn.Module):
    """A stock sequence classifier that takes `earlybert_kernels.PackedCollator`'s batches, in half precision.

    Modules and parameters are those of the model, whose attention is changed in place.
    """

    def __init__(self, model: BertForSequenceClassification) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.config._attn_implementation = _ATTENTION

    def forward(self, labels: Tensor, **batch: Any) -> SequenceClassifierOutput:
        """The mean loss of the sequences that have a label, and all logits `(sequences, classes)`."""
        hidden = self.model.bert(**batch).last_hidden_state
        first_tokens = hidden[0, batch["cu_seq_lens_q"][:-1]].unsqueeze(1)
        logits = self.model.classifier(self.model.dropout(self.model.bert.pooler(first_tokens)))
        return SequenceClassifierOutput(loss=F.cross_entropy(logits, labels), logits=logits)
