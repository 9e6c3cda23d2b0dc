"""The programs of examples/ run as they are, on a small BERT."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

import earlybert_kernels as ek

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("on_sst2", [True, False], ids=["sst2", "built-in task"])
@pytest.mark.parametrize("name", ["plain_loop", "trainer_glue"])
def test_an_example_trains_and_saves_a_ticket(
    name: str, on_sst2: bool, tiny_bert: str, toy_sst2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "trainer_glue":
        pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
    data = ["--data-dir", toy_sst2] if on_sst2 else ["--examples", "96"]
    data += ["--max-length", "32"]
    monkeypatch.setattr(sys, "argv", [name, "--model", tiny_bert, "--output-dir", str(tmp_path / "out"), *data])
    example = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    found = example["main"]()
    accuracy = found["eval_accuracy"] if name == "trainer_glue" else found
    assert 0 <= accuracy <= 1
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.model_type == "compact_bert"
    assert model.num_labels == (2 if on_sst2 else 5)
    assert ek.is_converted(ek.convert(model))
