"""Checkpoints that transformers 4 pruned."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from transformers import (
    AlbertForSequenceClassification,
    AutoModel,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    DistilBertForSequenceClassification,
    RobertaForSequenceClassification,
)

import earlybert_kernels as ek
from earlybert_kernels.models import families, layer_parts
from earlybert_kernels.models.family import ModelFamily
from earlybert_kernels.nn import LayerParts
from tests.helpers.model_folder import edit_config, write_pruned
from tests.helpers.tiny_bert import batch, tiny_model


@pytest.mark.parametrize(
    "cls",
    [
        AlbertForSequenceClassification,
        BertForSequenceClassification,
        DistilBertForSequenceClassification,
        RobertaForSequenceClassification,
    ],
)
def test_a_pruned_checkpoint_computes_what_it_did(cls, tmp_path: Path) -> None:
    stock = tiny_model(cls=cls)
    write_pruned(stock, tmp_path)
    expected = stock(**batch()).logits
    model = ek.load_pruned(AutoModelForSequenceClassification, tmp_path).eval()
    assert model.config.ticket.heads == [[0, 2], [0, 1, 2, 3], [1, 2, 3]][: len(layer_parts(stock))]
    torch.testing.assert_close(model(**batch()).logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ek.to_stock(model)(**batch()).logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ek.convert(model)(**batch()).logits, expected, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path / "again")
    assert "pruned_heads" not in json.loads((tmp_path / "again" / "config.json").read_text())
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(again(**batch()).logits, expected, rtol=1e-5, atol=1e-5)


def test_what_is_no_pruned_checkpoint_is_refused(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no pruned_heads: AutoModel loads it"):
        ek.load_pruned(AutoModel, tmp_path)
    for pruned, message in (
        ({"3": [0]}, r"names heads \[0\] of layer 3, which the model lacks"),
        ({"0": [4]}, r"names heads \[4\] of layer 0, which the model lacks"),
        ({"0": [0, 1, 2, 3]}, "layer 0"),
    ):
        edit_config(tmp_path, pruned_heads=pruned)
        with pytest.raises(ValueError, match=message):
            ek.load_pruned(AutoModel, tmp_path)
    edit_config(tmp_path, pruned_heads={"0": [1]})  # the weights are those of all heads
    with pytest.raises(ValueError, match=r"has encoder.layer.0.attention.* of shape \(24.* which is \(24, 18\) by"):
        ek.load_pruned(AutoModel, tmp_path)
    with pytest.raises(ValueError, match="load_pruned"):
        ek.convert(tiny_model(pruned_heads={0: [1]}))


def test_other_sizes_are_no_reason_for_random_weights(tmp_path: Path) -> None:
    write_pruned(tiny_model(), tmp_path)
    edit_config(tmp_path, pruned_heads={"0": [1]})
    with pytest.raises(ValueError, match=r"has bert.encoder.layer.0.* by its config \(and 13 more\)"):
        ek.load_pruned(AutoModelForSequenceClassification, tmp_path, ignore_mismatched_sizes=True)


def zero_rows(parts: LayerParts, unit: str, rows: Iterable[int], but_bias: bool) -> bool:
    """Zeros rows of the last that makes the units: values, say, or a gated unit's factors. Whether they have a bias."""
    *_, made = (p for p in parts.unit_parameters() if p.unit == unit and p.dim == 0 and p.name == "weight")
    for tensor in (made.linear.weight, None if but_bias else made.linear.bias):
        if tensor is not None:
            tensor.unflatten(0, (made.times, -1))[-1, list(rows)] = 0
    return made.linear.bias is not None


#: Those that could prune heads in transformers 4.
PRUNABLE = [family for family in families() if family.name != "ModernBERT"]


@pytest.mark.parametrize(
    ("family", "pruned"),
    [*((family, False) for family in families()), *((family, True) for family in PRUNABLE)],
    ids=lambda value: getattr(value, "name", str(value)),
)
@torch.no_grad()
def test_units_that_are_zero_are_dropped(family: ModelFamily, pruned: bool, tmp_path: Path) -> None:
    model = tiny_model(cls=dict(family.auto_classes)["AutoModelForSequenceClassification"])
    biased = False
    for _, parts in layer_parts(model)[1:]:
        parts.output.weight[:, [0, 7]] = 0
        zero_rows(parts, "neurons", [3], but_bias=False)
        biased = zero_rows(parts, "neurons", [4], but_bias=True)  # whose bias speaks
        zero_rows(parts, "heads", range(6, 12), but_bias=False)
    _, parts = layer_parts(model)[0]
    parts.output.weight.zero_()
    parts.attention_output.weight[:, 12:18] = 0
    if pruned:
        write_pruned(model, tmp_path)
    else:
        model.save_pretrained(tmp_path)
    small = ek.load_pruned(AutoModelForSequenceClassification, tmp_path, drop_zero_units=True)
    heads = [[0], [0, 2, 3], [2, 3]] if pruned else [[0, 1, 3], [0, 2, 3], [0, 2, 3]]
    left = [unit for unit in range(40) if unit not in (0, 3, 7) and (unit != 4 or biased)]
    layers = len(layer_parts(model))  # one, where they share it
    assert small.config.ticket == ek.Ticket(heads[:layers], [[0], left, left][:layers])
    torch.testing.assert_close(small(**batch()).logits, model(**batch()).logits, rtol=1e-5, atol=1e-5)


def test_a_compact_model_loses_its_zeros(tmp_path: Path) -> None:
    model = ek.compact(tiny_model(), ek.Ticket([[1, 2]] * 3, [[4, 9, 30]] * 3))
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[:, 1] = 0
    model.save_pretrained(tmp_path)
    small = ek.load_pruned(AutoModelForSequenceClassification, tmp_path, drop_zero_units=True)
    assert small.config.ticket == ek.Ticket([[1, 2]] * 3, [[4, 9, 30], [4, 30], [4, 9, 30]])
    torch.testing.assert_close(small(**batch()).logits, model(**batch()).logits, rtol=1e-5, atol=1e-5)
