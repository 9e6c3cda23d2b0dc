"""The programs of examples/ run as they are, on a small BERT."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

import earlybert_kernels as ek
from tests.helpers import forked

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
    found = run(name, monkeypatch, "--model", tiny_bert, "--output-dir", str(tmp_path / "out"), *data)
    accuracy = found["eval_accuracy"] if name == "trainer_glue" else found
    assert 0 <= accuracy <= 1
    assert_ticket(tmp_path / "out", labels=2 if on_sst2 else 5)


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """What an example's `main` returns."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]()


def assert_ticket(folder: Path, labels: int) -> None:
    """A compact classifier that is converted again."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.model_type == "compact_bert"
    assert model.num_labels == labels
    assert ek.is_converted(ek.convert(model))


def test_a_table_of_ones_own(tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
    rows = [("a,text", "red"), ("and another", "green"), ("the third", "blue")] * 40
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["what,colour", *(f'"{text}",{label}' for text, label in rows)]), encoding="utf-8")
    given = ["--file", str(table), "--text-column", "what", "--label-column", "colour"]
    for number, source in enumerate((given, ["--examples", "96"])):
        out = tmp_path / f"out{number}"
        found = run("own_labels", monkeypatch, "--model", tiny_bert, "--output-dir", str(out), *source)
        assert 0 <= found["eval_accuracy"] <= 1
        assert_ticket(out, labels=3)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out0")
    assert model.config.id2label == {0: "blue", 1: "green", 2: "red"}


def test_a_sentence_encoder(tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate", reason="its trainer needs accelerate")
    encoders = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
    data = ["--examples", "96", "--max-length", "16"]
    found = run("sentence_encoder", monkeypatch, "--model", tiny_bert, "--output-dir", str(tmp_path / "out"), *data)
    assert 0 <= found <= 1
    model = encoders.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert model[0].auto_model.config.model_type == "compact_bert"


def test_two_processes(tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    arguments = ["--model", tiny_bert, "--output-dir", str(tmp_path / "out")]
    arguments += ["--examples", "96", "--max-length", "32", "--batch-size", "16"]
    ended = forked.torchrun(2, forked.run_program, EXAMPLES / "torchrun_loop.py", *arguments)
    assert ended.status == 0, ended.output
    first, second = (float(line) for line in ended.output.splitlines() if line[:2] in ("0.", "1."))
    assert first == second <= 1
    assert_ticket(tmp_path / "out", labels=5)
