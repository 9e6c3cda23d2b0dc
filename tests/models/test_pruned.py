"""Checkpoints that transformers 4 pruned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    DistilBertForSequenceClassification,
    RobertaForSequenceClassification,
)

import earlybert_kernels as ek
from earlybert_kernels.models import layer_parts
from earlybert_kernels.units import head_rows
from tests.helpers.model_folder import edit_config
from tests.helpers.tiny_bert import batch, tiny_model

PRUNED = {0: [1, 3], 2: [0]}


@torch.no_grad()
def write_pruned(model, folder: Path) -> torch.Tensor:
    """Saves the model as `prune_heads` of transformers 4 left it; what it computes, by heads that add nothing."""
    model.save_pretrained(folder)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = {parameter: name for name, parameter in model.named_parameters()}
    for layer, gone in PRUNED.items():
        _, parts = layer_parts(model)[layer]
        kept = [head for head in range(parts.num_heads) if head not in gone]
        rows = head_rows(torch.tensor(kept), parts.head_size)
        for linear in (parts.query, parts.key, parts.value):
            for parameter in (linear.weight, linear.bias):
                state[names[parameter]] = parameter[rows].clone()
        weight = parts.attention_output.weight
        state[names[weight]] = weight[:, rows].clone()
        weight[:, head_rows(torch.tensor(gone), parts.head_size)] = 0
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    edit_config(folder, pruned_heads={str(layer): heads for layer, heads in PRUNED.items()})
    return model(**batch()).logits


@pytest.mark.parametrize(
    "cls", [BertForSequenceClassification, RobertaForSequenceClassification, DistilBertForSequenceClassification]
)
def test_a_pruned_checkpoint_computes_what_it_did(cls, tmp_path: Path) -> None:
    expected = write_pruned(tiny_model(cls=cls), tmp_path)
    model = ek.load_pruned(AutoModelForSequenceClassification, tmp_path).eval()
    assert model.config.ticket.heads == [[0, 2], [0, 1, 2, 3], [1, 2, 3]]
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
