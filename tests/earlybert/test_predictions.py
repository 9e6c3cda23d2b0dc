"""A run that ends with predictions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from earlybert import FinetuneArguments, finetune, predict, verify
from earlybert.cli import main
from earlybert.errors import MissingFileError, UsageError
from earlybert.programs.predictions import render
from earlybert.tasks import TASKS, Source

Make = Callable[..., FinetuneArguments]
TEXTS = ["a good film", "a bad film, a very bad film", "the film"]


def test_one_command_trains_and_predicts_for_a_table_of_pairs(
    tiny_bert: str, toy_sst2: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [line.split("\t") for line in (Path(toy_sst2) / "train.tsv").read_text().splitlines()[1:]]
    pairs = [f"the story is {text},{text},{['against', 'in favour'][int(label)]}" for text, label in rows]
    (tmp_path / "train.csv").write_text("\n".join(["premise,review,verdict", *pairs]) + "\n")
    test = "".join(f'"{text}","{text}"\n' for text in TEXTS)
    (tmp_path / "test.csv").write_text("premise,review\n" + test)
    run = tmp_path / "run"
    argv = [
        *("finetune", "--model", tiny_bert, "--train-file", str(tmp_path / "train.csv"), "--output-dir", str(run)),
        *("--text-column", "premise", "--text-pair-column", "review", "--label-column", "verdict"),
        *("--test-file", str(tmp_path / "test.csv"), "--max-length", "16", "--batch-size", "8", "--max-steps", "4"),
        *("--search-steps", "2", "--early-bird-interval", "1", "--device", "cpu"),
    ]
    assert main(argv) == 0
    written = (run / "test_predictions.jsonl").read_bytes()
    answers = [json.loads(line) for line in written.splitlines()]
    assert len(answers) == len(TEXTS)
    assert {answer["label"] for answer in answers} <= {"against", "in favour"}
    predict(str(run), str(tmp_path / "test.csv"), str(tmp_path / "p.jsonl"))
    assert (tmp_path / "p.jsonl").read_bytes() == written
    assert all(finding.holds for finding in verify(str(run)))
    assert "  test_predictions.jsonl\n" in (run / "SHA256SUMS").read_text()


def test_an_answer_is_one_field_of_one_row_of_a_tsv() -> None:
    answers = [{"prediction_text": "two\nlines\tand a tab"}, {"prediction_text": "one"}]
    assert render(TASKS["squad"], answers, ".tsv") == b"index\tprediction\n0\ttwo lines and a tab\n1\tone\n"
    lines = render(TASKS["squad"], answers, ".jsonl").splitlines()
    assert [json.loads(line) for line in lines] == answers


def test_the_test_split_of_glue_is_answered_as_glue_wants_it(arguments: Make, tmp_path: Path, toy_sst2: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_bytes((Path(toy_sst2) / name).read_bytes())
    test = "index\tsentence\n" + "".join(f"{i}\t{text}\n" for i, text in enumerate(TEXTS))
    (folder / "test.tsv").write_text(test)
    args = arguments(data_dir=str(folder), do_predict=True, method="dense", kernels="off", max_steps=2)
    finetune(args)
    predict(args.output_dir, str(folder / "test.tsv"), str(tmp_path / "SST-2.tsv"))
    written = (Path(args.output_dir) / "test_predictions.tsv").read_bytes()
    assert written.startswith(b"index\tprediction\n0\t")
    assert written == (tmp_path / "SST-2.tsv").read_bytes()


def test_what_cannot_be_predicted_is_said_before_a_model_is_loaded(
    arguments: Make, tmp_path: Path, no_model_is_loaded: None
) -> None:
    for name, text in (
        ("t.csv", "text,label\n" + "a film,x\nthe plot,y\n" * 4),
        ("e.csv", "text\n"),
        ("w.csv", "t\nx\n"),
    ):
        (tmp_path / name).write_text(text)
    table = {"task": "classification", "data_dir": None, "train_file": str(tmp_path / "t.csv")}
    for changes, kind, message in (
        ({"test_file": "absent.tsv"}, MissingFileError, "absent.tsv: no such file"),
        ({"do_predict": True}, MissingFileError, "test.tsv: no such file"),
        (
            {**table, "do_predict": True},
            UsageError,
            "--do-predict: task classification .*--test-file",
        ),
        ({**table, "test_file": str(tmp_path / "e.csv")}, UsageError, "e.csv: expected at least one example"),
        ({**table, "test_file": str(tmp_path / "w.csv")}, UsageError, "--text-column"),
    ):
        with pytest.raises(kind, match=message):
            finetune(arguments(**changes))
    assert not (tmp_path / "run").exists()


def test_test_splits_of_the_hub_have_no_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_dict({"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [-1, -1]})
    splits = {"test_matched": rows, "test_mismatched": rows.select([1])}
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: splits)
    tests = TASKS["mnli"].own_tests(Source())
    assert {name: (test.texts, test.labels) for name, test in tests.items()} == {
        "": ([("a", "c"), ("b", "d")], [0, 0]),
        "mismatched": ([("b", "d")], [0]),
    }
