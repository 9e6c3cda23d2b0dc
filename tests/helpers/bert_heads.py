"""Every head of transformers with labels for one padded batch, and what to compare of its outputs."""

from __future__ import annotations

import torch
import transformers

from earlybert_kernels.models import families
from earlybert_kernels.models.family import Head, Labels, Rows
from tests.helpers.tiny_bert import batch, tiny_model

LENGTHS = (5, 2, 9, 3)
MASK = batch(LENGTHS)["attention_mask"].bool()
IGNORED = torch.where(MASK, torch.randint(0, 3, MASK.shape, generator=torch.Generator().manual_seed(2)), -100)
PAIR = torch.tensor([0, 1, 1, 0])


def _case(head: Head) -> tuple[dict, dict]:
    name = head.stock.__name__
    if name == "BertForPreTraining":
        outputs = {"prediction_logits": True, "seq_relationship_logits": False}
        return {"labels": IGNORED, "next_sentence_label": PAIR}, outputs
    if name == "AlbertForPreTraining":
        return {"labels": IGNORED, "sentence_order_label": PAIR}, {"prediction_logits": True, "sop_logits": False}
    if name == "ElectraForPreTraining":  # whether a token was replaced
        return {"labels": torch.where(MASK, IGNORED % 2, -100)}, {"logits": True}
    if head.labels is Labels.SPAN:
        answers = {"start_positions": torch.tensor([0, 1, 8, 1]), "end_positions": torch.tensor([3, 1, 8, 2])}
        return answers, {"start_logits": True, "end_logits": True}
    if head.labels is Labels.SEQUENCE:
        labels = PAIR if name == "BertForNextSentencePrediction" else torch.tensor([0, 2, 1, 1])
        return {"labels": labels}, {"logits": False}
    return {"labels": IGNORED}, {"logits": True}


def labels_of(head: Head) -> dict[str, torch.Tensor]:
    """What a head is trained by, of the batch of `LENGTHS`."""
    return _case(head)[0]


#: The head class that a name is of. CamemBERT and XLM-RoBERTa are RoBERTa under another name.
CLASSES = {
    head.stock.__name__: head
    for family in families()
    if family.name not in ("CamemBERT", "XLM-RoBERTa")
    for head in family.heads
    if head.takes_packed
}
#: class -> (labels, the outputs to compare, whether they are token-wise)
ALL_HEADS = {name: _case(head) for name, head in CLASSES.items()}
#: Those of BERT, where one family stands for all.
HEADS = {name: case for name, case in ALL_HEADS.items() if name.startswith("Bert")}
SPANS = [name for name, head in CLASSES.items() if head.labels is Labels.SPAN]
CAUSAL = [name for name, head in CLASSES.items() if head.labels is Labels.NEXT_TOKEN]
FIRST = [name for name, head in CLASSES.items() if head.rows is Rows.FIRST]
MASKED = [name for name, head in CLASSES.items() if head.decoder is not None]


def model_of(name):
    two = name in SPANS or name == "AlbertForPreTraining"
    return tiny_model(cls=getattr(transformers, name), **({"num_labels": 2} if two else {}))
