"""What a ticket is trained by when the dense model has a say."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from earlybert.training.distillation import Distillation


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("single_label_classification", torch.tensor([2, 0])),
        ("multi_label_classification", torch.tensor([[0.0, 1, 1], [1, 0, 0]])),
        ("regression", torch.tensor([[0.5, 1, 2], [1, 0, 0]])),
    ],
)
def test_the_distance_is_what_the_definition_says(tiny_bert: str, kind: str, labels: torch.Tensor) -> None:
    teacher, student = (
        AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3, problem_type=kind).eval()
        for _ in range(2)
    )
    batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 10]]), "labels": labels}
    outputs, expected = student(**batch), teacher(**batch).logits.detach().double()
    own, other = outputs.logits.double(), expected
    if kind == "regression":
        distance = ((own - other) ** 2).mean()
    elif kind == "single_label_classification":
        p, q = (each.div(3).exp() / each.div(3).exp().sum(1, keepdim=True) for each in (other, own))
        distance = 9 * (p * (p / q).log()).sum() / 2
    else:
        p, q = (1 / (1 + (-each / 3).exp()) for each in (other, own))
        distance = -9 * (p * q.log() + (1 - p) * (1 - q).log()).mean()
    loss = Distillation(teacher, share=0.25, temperature=3.0).loss(outputs, batch)
    torch.testing.assert_close(loss.double(), 0.75 * outputs.loss.double() + 0.25 * distance, rtol=1e-5, atol=1e-6)
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.classifier.weight.grad.abs().sum() > 0
