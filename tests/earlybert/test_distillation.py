"""What a ticket is trained by when the dense model has a say."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import earlybert_kernels as ek
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


@pytest.mark.parametrize("batch", ["padded", "packed", "converted"])
def test_hidden_states_count_too(tiny_bert: str, batch: str) -> None:
    """Of real tokens; what stands on padding counts nothing."""
    teacher, student = (AutoModelForSequenceClassification.from_pretrained(tiny_bert).eval() for _ in range(2))
    for parameter in student.bert.encoder.parameters():
        parameter.data.mul_(1.1)
    ids, mask = torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    labels = torch.tensor([1, 0])
    states = [model(ids, mask, output_hidden_states=True).hidden_states[1:] for model in (student, teacher)]
    squares = [(a - b).double().square()[mask.bool()].mean() for a, b in zip(*states, strict=True)]
    given = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    if batch != "padded":
        ek.convert(student), ek.convert(teacher)
    if batch == "packed":
        examples = [{"input_ids": row[: sum(own)].tolist(), "labels": label}
                    for row, own, label in zip(ids, mask.tolist(), [1, 0], strict=True)]  # fmt: skip
        given = ek.PackedCollator()(examples)
    losses = []
    for of_hidden_states in (False, True):
        distillation = Distillation(teacher, 0.25, 3.0, of_hidden_states)
        losses.append(distillation.loss(student(**given, **distillation.asked_for), given))
    expected = 0.25 * torch.stack(squares).mean()
    assert expected > 1e-3
    torch.testing.assert_close((losses[1] - losses[0]).double(), expected, rtol=1e-4, atol=1e-6)
    losses[1].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.bert.encoder.layer[0].intermediate.dense.weight.grad.abs().sum() > 0
