"""Every BERT head of transformers with labels for one padded batch, and what to compare of its outputs."""

from __future__ import annotations

import torch
import transformers

from tests.helpers.tiny_bert import batch, tiny_model

LENGTHS = (5, 2, 9, 3)
MASK = batch(LENGTHS)["attention_mask"].bool()
IGNORED = torch.where(MASK, torch.randint(0, 3, MASK.shape, generator=torch.Generator().manual_seed(2)), -100)
PAIR = torch.tensor([0, 1, 1, 0])

#: class -> (labels, the outputs to compare, whether they are token-wise)
HEADS = {
    "BertForPreTraining": (
        {"labels": IGNORED, "next_sentence_label": PAIR},
        {"prediction_logits": True, "seq_relationship_logits": False},
    ),
    "BertLMHeadModel": ({"labels": IGNORED}, {"logits": True}),
    "BertForMaskedLM": ({"labels": IGNORED}, {"logits": True}),
    "BertForNextSentencePrediction": ({"labels": PAIR}, {"logits": False}),
    "BertForSequenceClassification": ({"labels": torch.tensor([0, 2, 1, 1])}, {"logits": False}),
    "BertForTokenClassification": ({"labels": IGNORED}, {"logits": True}),
    "BertForQuestionAnswering": (
        {"start_positions": torch.tensor([0, 1, 8, 1]), "end_positions": torch.tensor([3, 1, 8, 2])},
        {"start_logits": True, "end_logits": True},
    ),
}


def model_of(name):
    fields = {"num_labels": 2} if name == "BertForQuestionAnswering" else {}
    return tiny_model(cls=getattr(transformers, name), **fields)
