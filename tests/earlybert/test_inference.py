"""What a run's model says of other files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import earlybert_kernels as ek
from earlybert import FinetuneArguments, evaluate, finetune, predict
from earlybert.cli import main
from earlybert.errors import MissingFileError, OutputExistsError, UsageError
from earlybert.programs.plots import plot

Make = Callable[..., FinetuneArguments]
TEXTS = ["a good film", "a bad film, a very bad film", "the film"]


@pytest.fixture(scope="module")
def run(tiny_bert: str, toy_sst2: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ticket trained on a table with named labels."""
    folder = tmp_path_factory.mktemp("inference")
    rows = [line.split("\t") for line in (Path(toy_sst2) / "train.tsv").read_text().splitlines()[1:]]
    lines = [json.dumps({"review": text, "verdict": {"0": "bad", "1": "good"}[label]}) for text, label in rows]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    finetune(
        FinetuneArguments(
            model=tiny_bert, train_file=str(folder / "train.jsonl"), validation_file=str(folder / "train.jsonl"),
            text_column="review", label_column="verdict", output_dir=str(folder / "run"), batch_size=8, max_length=16,
            max_steps=30, search_steps=8, learning_rate=5e-3, device="cpu",
        )
    )  # fmt: skip
    return folder / "run"


def test_predictions_are_those_of_the_model_in_transformers(run: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"review": text}) + "\n" for text in TEXTS))
    assert predict(str(run), str(tmp_path / "t.jsonl"), str(tmp_path / "p.jsonl")) == len(TEXTS)
    found = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    model = ek.to_stock(AutoModelForSequenceClassification.from_pretrained(run / "model")).eval()
    batch = AutoTokenizer.from_pretrained(run / "model")(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).logits.softmax(dim=1)
    assert [answer["label"] for answer in found] == [model.config.id2label[i] for i in expected.argmax(1).tolist()]
    assert [answer["score"] for answer in found] == pytest.approx(expected.max(1).values.tolist(), abs=1e-5)


def test_evaluating_on_the_same_file_says_what_the_run_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert evaluate(str(run), str(run.parent / "train.jsonl")) == pytest.approx(metrics["eval"], rel=1e-5)
    assert main(["evaluate", str(run), str(run.parent / "train.jsonl")]) == 0
    assert f"accuracy {metrics['eval']['accuracy']:.4f}" in capsys.readouterr().out


def test_glue_is_answered_as_it_wants_it(arguments: Make, tmp_path: Path, toy_sst2: str) -> None:
    args = arguments(max_steps=30)
    result = finetune(args)
    test = tmp_path / "test.tsv"
    test.write_text("index\tsentence\n" + "".join(f"{i}\t{text}\n" for i, text in enumerate(TEXTS)))
    assert main(["predict", args.output_dir, str(test), str(tmp_path / "SST-2.tsv")]) == 0
    assert main(["predict", args.output_dir, str(test), str(tmp_path / "p.jsonl")]) == 0
    header, *rows = (tmp_path / "SST-2.tsv").read_text().splitlines()
    names = [json.loads(line)["label"] for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert header == "index\tprediction"
    assert rows == [f"{i}\t{['negative', 'positive'].index(name)}" for i, name in enumerate(names)]
    assert evaluate(args.output_dir, f"{toy_sst2}/dev.tsv") == pytest.approx(result["eval"], rel=1e-5)


def test_numbers_are_predicted(arguments: Make, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"film {i % 7},{i % 7}.5\n" for i in range(20)))
    args = arguments(
        task="regression", data_dir=None, train_file=str(tmp_path / "t.csv"), validation_file=str(tmp_path / "t.csv")
    )
    result = finetune(args)
    assert evaluate(args.output_dir, str(tmp_path / "t.csv")) == pytest.approx(result["eval"], rel=1e-6)
    predict(args.output_dir, str(tmp_path / "t.csv"), str(tmp_path / "p.jsonl"))
    answers = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert len(answers) == 20 and all(isinstance(answer["prediction"], float) for answer in answers)


def test_what_cannot_be_done_is_said(run: Path, tmp_path: Path) -> None:
    texts, output = tmp_path / "t.jsonl", str(tmp_path / "p.jsonl")
    texts.write_text('{"review": "a film", "verdict": "fine"}\n')
    with pytest.raises(UsageError, match="expected labels of the model, bad, good; found fine"):
        evaluate(str(run), str(texts))
    with pytest.raises(UsageError, match="expected a file named .jsonl or .tsv"):
        predict(str(run), str(texts), str(tmp_path / "p.txt"))
    with pytest.raises(OutputExistsError, match="there is such a file"):
        predict(str(run), str(texts), str(texts))
    with pytest.raises(UsageError, match="the file of the texts"):
        predict(str(run), str(texts), str(texts), overwrite=True)
    assert "fine" in texts.read_text()
    with pytest.raises(OutputExistsError, match="a file of the run"):
        predict(str(run), str(texts), str(run / "ticket.json"), overwrite=True)
    with pytest.raises(MissingFileError, match="no such file"):
        predict(str(run), str(tmp_path / "absent.jsonl"), output)
    texts.write_text('{"text": "a film"}\n')
    with pytest.raises(UsageError, match="--text-column: expected a column of .*; found none named review"):
        predict(str(run), str(texts), output)
    (tmp_path / "empty.csv").write_text("review\n")
    with pytest.raises(UsageError, match="expected at least one example, found none"):
        predict(str(run), str(tmp_path / "empty.csv"), output)
    with pytest.raises(MissingFileError, match="nowhere is no folder"):
        predict(str(run), str(texts), str(tmp_path / "nowhere" / "p.jsonl"))
    for device in ("toaster", "meta", "mtia"):
        with pytest.raises(UsageError, match=f"--device {device}: "):
            predict(str(run), str(texts), output, device=device)
    assert not Path(output).exists()


@pytest.mark.parametrize("arguments", [[], {}, {"model": "m", "output_dir": "o", "task": "none"}])
def test_other_arguments_than_a_runs_are_told(run: Path, tmp_path: Path, arguments: object) -> None:
    edited = tmp_path / "edited"
    shutil.copytree(run, edited)
    (edited / "SHA256SUMS").unlink()
    metrics = json.loads((edited / "metrics.json").read_text())
    (edited / "metrics.json").write_text(json.dumps({**metrics, "arguments": arguments, "search": {"checks": "x"}}))
    with pytest.raises(UsageError, match="metrics.json: expected the arguments of a run"):
        predict(str(edited), str(tmp_path / "t.jsonl"), str(tmp_path / "p.jsonl"))
    with pytest.raises(UsageError, match="metrics.json: not as a run writes it: "):
        plot(str(edited))


def test_a_wrong_file_is_found_before_the_model_is_loaded(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple] = []
    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", lambda *a, **k: loaded.append(a))
    (tmp_path / "t.csv").write_text("text\na film\n")
    with pytest.raises(UsageError, match="--text-column"):
        predict(str(run), str(tmp_path / "t.csv"), str(tmp_path / "p.jsonl"))
    assert not loaded
