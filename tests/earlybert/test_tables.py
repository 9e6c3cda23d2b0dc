"""Fine-tuning on tables of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from earlybert import FinetuneArguments, finetune
from earlybert.cli import main
from earlybert.errors import MissingFileError, UsageError
from earlybert.programs.evaluations import Evaluations
from earlybert.tasks import TASKS, Source
from earlybert.tasks.columns import Columns
from earlybert.tasks.metrics import METRICS, Kind, compute_metrics
from earlybert.tasks.tables import read_table, read_tables
from tests.helpers.tables import write_table

Make = Callable[..., FinetuneArguments]
#: What CSV readers like to change: nothing of it is a number, missing or the end of a row.
TEXTS = ["NA", "007", "null", "1e3", 'a "quoted", b', "two\nlines", "  spaces ", "2020-01-01", "ünïcode", "true"]
LABELS = ["yes", "no"] * 5


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".parquet"])
def test_every_format_gives_the_texts_as_they_were_written(tmp_path: Path, suffix: str) -> None:
    path = write_table(tmp_path / f"t{suffix}", {"text": TEXTS, "label": LABELS})
    train, evaluation = read_tables(Source(train_file=path, validation_file=path), Columns())
    assert train == evaluation
    assert train.texts == [(text,) for text in TEXTS]
    assert train.labels == LABELS


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_text_may_be_longer_than_what_arrow_reads_at_a_time(tmp_path: Path, suffix: str) -> None:
    texts = ["short", "long " * 1_000_000]
    path = write_table(tmp_path / f"t{suffix}", {"text": texts, "label": ["a", "b"]})
    assert read_table(path)["text"][:] == texts


def test_nothing_is_quoted_in_tsv(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes(b'\xef\xbb\xbftext\tlabel\n"half a quote\tNA\nsecond\t1\n')
    dataset = read_table(path)
    assert dataset["text"][:] == ['"half a quote', "second"]
    assert dataset["label"][:] == ["NA", "1"]


def refusal(**options: Any) -> str:
    columns = {name: options.pop(name) for name in list(options) if name in ("text", "pair", "label")}
    with pytest.raises(UsageError) as error:
        read_tables(Source(**options), Columns(**columns))
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", b"text,label\na,b,c\n", "not the .csv that its name says"),
        ("a.csv", b"text,label\n\xff,b\n", "invalid UTF8"),
        ("a.csv", b"", "Empty CSV"),
        ("a.jsonl", b"text,label\na,b\n", "not the .jsonl that its name says"),
        ("a.json", b"[1, 2]", "expected a list of rows"),
        ("a.json", b"[{", "not the .json that its name says"),
        ("a.parquet", b"text,label\na,b\n", "not the .parquet that its name says"),
        ("a.txt", b"text,label\na,b\n", "expected a file named .csv, .tsv, .jsonl, .json, .parquet"),
        ("a.csv", b"words,label\na,b\n", "found none named sentence or text"),
        ("a.csv", b"text,text,label\na,b,c\n", "expected columns of different names, found two named text"),
        ("a.csv", b"text,class\na,b\n", "--label-column: expected a column of"),
        ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": null, "label": 1}\n', "row 2: expected a text in column"),
        ("a.jsonl", b'{"text": 5, "label": 1}\n', "row 1: expected a text in column text, found 5"),
        ("a.jsonl", b'{"text": "a", "label": 1.5}\n{"text": "a", "label": NaN}\n', "row 2: expected a label in column"),
        ("a.jsonl", b'{"text": "a", "label": [1]}\n', "row 1: expected a label in column label, found [1]"),
        ("a.csv", b"text,label\na,b\na,\n", "row 2: expected a label in column label, found nothing"),
        ("a.tsv", b"text\tlabel\na\t \n", "row 1: expected a label in column label, found nothing"),
        ("a.csv", b"text,label\n,a\n \t,b\n", "2 of 2 texts in column text are empty"),
        ("a.csv", b"text,label\n", "expected at least one example, found none"),
        ("a.json", b"[]", "expected at least one example, found none"),
        ("a.csv", "text,label\na,b\n".encode("utf-16"), "expected UTF-8, found UTF-16"),
    ],
)  # fmt: skip
def test_wrong_files_are_refused_by_name(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(train_file=path)
    assert expected in message
    assert str(path) in message
    assert "\n" not in message


def test_a_column_is_either_a_text_or_the_label(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", {"text": TEXTS, "label": LABELS})
    another = f"--label-column: expected another column of {path} than that of the texts, found "
    assert another + "label" in refusal(train_file=path, text="label")
    assert another + "label" in refusal(train_file=path, pair="label")
    assert another + "text" in refusal(train_file=path, label="text")
    assert f"--text-pair-column: expected another column of {path}" in refusal(train_file=path, pair="text")


def test_some_empty_texts_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_table(tmp_path / "t.csv", {"a": ["x", "", ""], "b": ["", "y", " "], "label": ["a", "b", "a"]})
    Columns(text="a", pair="b").read(read_table(path), "t.csv")
    assert caplog.messages == ["t.csv: 1 of 3 texts in column a and b are empty"]


@pytest.mark.parametrize("words", [False, True])
def test_dates_in_json_lines_stay_as_they_were_written(tmp_path: Path, words: bool) -> None:
    dates = ["2020-01-01", "2021-12-31 10:00"]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"when": [date] if words else date, "n": 1}) + "\n" for date in dates))
    table = read_table(path)
    assert table["when"][:] == ([[date] for date in dates] if words else dates)
    assert table["n"][:] == [1, 1]


def test_a_file_name_may_be_in_capitals(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", {"text": TEXTS})
    assert read_table(path.rename(tmp_path / "T.CSV"))["text"][:] == TEXTS


def test_what_to_train_on_is_said_once(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", {"text": TEXTS, "label": LABELS})
    assert "expected what to train on: --train-file" in refusal()
    assert "expected one of --train-file, --dataset-name" in refusal(train_file=path, dataset_name="x")
    assert "--validation-file: expected --train-file" in refusal(validation_file=path, dataset_name="x")
    with pytest.raises(MissingFileError, match="no such file"):
        read_tables(Source(train_file=tmp_path / "absent.csv"), Columns())
    with pytest.raises(UsageError, match="expected a dataset with a split named train"):
        read_tables(Source(data_dir=tmp_path), Columns())


def test_one_row_in_ten_is_held_out_always_the_same(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", {"text": [f"text {i}" for i in range(95)], "label": ["a", "b"] * 47 + ["a"]})
    train, held_out = read_tables(Source(train_file=path), Columns())
    assert (len(train), len(held_out)) == (85, 10)
    assert {*train.texts, *held_out.texts} == {(f"text {i}",) for i in range(95)}
    assert read_tables(Source(train_file=path), Columns()) == (train, held_out)
    short = write_table(tmp_path / "short.csv", {"text": ["one"], "label": ["a"]})
    assert "a single row cannot be" in refusal(train_file=short)


def test_saved_datasets_and_the_hubs_bring_their_splits_and_the_order_of_their_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["z", "a"])})
    split = Dataset.from_dict({"sentence": ["one", "two", "three", "four"], "label": [0, 1, 1, 0]}, features=features)
    splits = DatasetDict(train=split, validation=split.select([1]), test=split)
    splits.save_to_disk(str(tmp_path / "saved"))
    found = read_tables(Source(data_dir=tmp_path / "saved"), Columns())
    assert found[0].labels == ["z", "a", "a", "z"]
    assert found[1].texts == [("two",)]
    task = TASKS["classification"]
    data = task.load(Source(data_dir=tmp_path / "saved"))
    assert task.fitted(data).labels == ("z", "a")

    monkeypatch.setattr("datasets.load_dataset", lambda name, config: {"n/d": splits}[f"{name}/{config}"])
    assert read_tables(Source(dataset_name="n", dataset_config="d"), Columns()) == found
    assert "--dataset-name absent could not be read from the Hugging Face hub" in refusal(dataset_name="absent")
    unlabelled = split.map(lambda row: {"label": -1}, features=features)
    DatasetDict(train=unlabelled).save_to_disk(str(tmp_path / "unlabelled"))
    assert "row 1: expected a label in column label, found none" in refusal(data_dir=tmp_path / "unlabelled")


def fitted(train: list[Any], evaluation: list[Any], task: str = "classification", **options: Any) -> Any:
    from earlybert.tasks import TaskData
    from earlybert.tasks.columns import Table

    own = TASKS[task].with_options(**options)
    split = {name: Table([("x",)] * len(labels), labels) for name, labels in (("t", train), ("e", evaluation))}
    return own.fitted(TaskData(train=split["t"], evals={"": split["e"]}))


@pytest.mark.parametrize(("labels", "warned"), [(["Pos", "neg", "pos"], 1), (["neg", "a  b", "a b "], 1), ("ab", 0)])
def test_classes_that_look_alike_are_told(labels: list[str], warned: int, caplog: pytest.LogCaptureFixture) -> None:
    assert len(fitted([*labels] * 3, [*labels]).labels) == len(labels)
    assert len(caplog.messages) == warned
    assert all("differ in case or spaces alone" in message for message in caplog.messages)


def test_classes_are_those_of_the_training_examples() -> None:
    assert fitted(["b", "a", "b", "a"], ["b"]).labels == ("a", "b")
    assert fitted([10, 9, 10, 9], [9]).labels == ("9", "10")
    assert fitted(["10", "9"] * 2, ["9"]).labels == ("9", "10")
    assert fitted(["1", "01", "001"] * 3, ["1"]).labels == ("001", "01", "1"), "the same in every process"
    with pytest.raises(UsageError, match="the evaluation examples have labels that the training examples do not: c"):
        fitted(["a", "b"], ["c"])
    with pytest.raises(UsageError, match="expected two classes at least, found only a"):
        fitted(["a", "a"], ["a"])
    with pytest.raises(UsageError, match="numbers to be predicted are --task regression"):
        fitted([0.25, 0.5, 0.75, 0.1], [0.5])
    with pytest.raises(UsageError, match="expected numbers, found 'b' in the evaluation examples"):
        fitted(["1.5", "2"], ["b"], "regression")


def test_metrics_are_chosen_by_name() -> None:
    own = TASKS["classification"].with_options(metrics=["f1_macro", "accuracy"])
    assert (own.metrics, own.main_metric) == (("f1_macro", "accuracy"), "f1_macro")
    for metrics, message in ((["pearson"], "found pearson"), (["speed"], "found speed")):
        with pytest.raises(UsageError, match=f"--metrics: expected of accuracy.* {message}"):
            TASKS["classification"].with_options(metrics=metrics)
    assert fitted(["a", "b"] * 3, ["a"], metrics=["f1"]).labels == ("a", "b")
    with pytest.raises(UsageError, match="--metrics f1: .* of two classes, found 3; f1_macro is of all"):
        fitted(["a", "b", "c"] * 3, ["a"], metrics=["accuracy", "f1"])
    with pytest.raises(UsageError, match="more being better; found mean_squared_error"):
        TASKS["regression"].with_options(metrics=["mean_squared_error"])
    for option in ("text_column", "label_column", "metrics"):
        with pytest.raises(UsageError, match="says nothing to task sst2"):
            TASKS["sst2"].with_options(**{option: "x"})
    with pytest.raises(UsageError, match="the task has a dataset of its own"):
        TASKS["sst2"].load(Source(dataset_name="x"))


def test_one_command_trains_on_a_table_with_pairs_and_named_labels(
    tiny_bert: str, toy_sst2: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentences = [line.split("\t") for line in (Path(toy_sst2) / "train.tsv").read_text().splitlines()[1:]]
    path = write_table(
        tmp_path / "t.csv",
        {
            "id": list(range(len(sentences))),
            "question": [sentence for sentence, _ in sentences],
            "answer": ["film"] * len(sentences),
            "verdict": [{"0": "bad", "1": "good"}[label] for _, label in sentences],
        },
    )
    argv = [
        "finetune", "--model", tiny_bert, "--train-file", str(path), "--text-column", "question", "--text-pair-column",
        "answer", "--label-column", "verdict", "--metrics", "f1", "accuracy", "--output-dir", str(tmp_path / "run"),
        "--max-steps", "30", "--search-steps", "8", "--learning-rate", "5e-3", "--batch-size", "8",
        "--max-length", "16",
    ]  # fmt: skip
    assert main(argv) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["task"] == "classification"
    assert metrics["main_metric"] == "f1"
    assert list(metrics["eval"]) == ["f1", "accuracy", "eval_loss"]
    assert metrics["eval"]["accuracy"] > 0.7, "the toy task is easy"
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert main(["verify", str(tmp_path / "run")]) == 0


def test_numbers_are_predicted(arguments: Make, toy_sst2: str, tmp_path: Path) -> None:
    rows = [line.split("\t") for line in (Path(toy_sst2) / "train.tsv").read_text().splitlines()[1:]]
    table = {"text": [text for text, _ in rows], "label": [2.5 * float(label) for _, label in rows]}
    path = write_table(tmp_path / "t.parquet", table)
    result = finetune(arguments(task="regression", data_dir=None, train_file=str(path), max_steps=40, method="dense"))
    assert list(result["eval"]) == ["pearson", "mean_squared_error", "eval_loss"]
    assert result["eval"]["pearson"] > 0.5, "the toy task is easy"


@pytest.fixture(scope="module")
def as_tables(toy_sst2: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SST-2's toy files as a folder of tables of every kind."""
    folder, splits = tmp_path_factory.mktemp("tables"), DatasetDict()
    for split, file in (("train", "train.tsv"), ("validation", "dev.tsv")):
        rows = [line.split("\t") for line in (Path(toy_sst2) / file).read_text().splitlines()[1:]]
        columns = {"sentence": [text for text, _ in rows], "label": [label for _, label in rows]}
        for suffix in (".csv", ".tsv"):
            write_table(folder / f"{split}{suffix}", columns)
        columns["label"] = [int(label) for label in columns["label"]]
        for suffix in (".jsonl", ".parquet"):
            write_table(folder / f"{split}{suffix}", columns)
        splits[split] = Dataset.from_dict(columns)
    splits.save_to_disk(str(folder / "saved"))
    return folder


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".parquet", "saved"])
def test_the_same_recipe_gives_the_same_weights_from_any_format(
    arguments: Make, as_tables: Path, tmp_path: Path, kind: str
) -> None:
    finetune(arguments(output_dir=str(tmp_path / "glue")))
    own = {"data_dir": str(as_tables / "saved")} if kind == "saved" else {
        "data_dir": None,
        "train_file": str(as_tables / f"train{kind}"),
        "validation_file": str(as_tables / f"validation{kind}"),
    }  # fmt: skip
    finetune(arguments(output_dir=str(tmp_path / "own"), task="classification", **own))
    glue, table = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("glue", "own"))
    assert glue.keys() == table.keys()
    assert all(torch.equal(glue[name], table[name]) for name in glue)


def test_a_resumed_run_notices_another_table(
    arguments: Make, as_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes((as_tables / "train.csv").read_bytes())
    args = {"task": "classification", "data_dir": None, "train_file": str(path)}

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Evaluations, "last", interrupt)
        with pytest.raises(KeyboardInterrupt):
            finetune(arguments(**args))
    path.write_text(path.read_text().replace("film", "play"))
    with pytest.raises(UsageError, match="the training examples .* are not those that it was started with"):
        finetune(arguments(**args, resume=True))


def test_what_a_table_lacks_is_said_before_a_model_is_loaded(
    arguments: Make, as_tables: Path, tmp_path: Path, no_model_is_loaded: None
) -> None:
    empty = tmp_path / "empty.csv"
    empty.write_text("sentence,label\n")
    args = {"task": "classification", "data_dir": None, "train_file": str(as_tables / "train.csv")}
    with pytest.raises(UsageError, match="empty.csv: expected at least one example, found none"):
        finetune(arguments(**args, validation_file=str(empty)))
    with pytest.raises(UsageError, match="--label-column: expected a column of .*sentence, label; found none named y"):
        finetune(arguments(**args, label_column="y"))


def test_tables_do_not_go_through_a_cache(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", {"text": ["one"], "label": ["a"]})
    assert read_table(path)["text"][:] == ["one"]
    path.write_text(path.read_text().replace("one", "two"))
    assert read_table(path)["text"][:] == ["two"]
    assert not list(Path(datasets.config.HF_DATASETS_CACHE).glob("csv"))


@pytest.mark.parametrize("metric", [name for name, metric in METRICS.items() if Kind.CLASSES in metric.kinds])
def test_every_metric_of_classes_takes_whatever_a_model_says(metric: str) -> None:
    classes = 2 if metric == "f1" else 3
    for said in range(classes):
        for right in ([0] * 6, [0, 1] * 3, [i % classes for i in range(6)]):
            found = compute_metrics([metric], np.full(6, said), np.array(right))
            assert -1 <= found[metric] <= 1


@pytest.mark.parametrize("metric", [name for name, metric in METRICS.items() if Kind.NUMBERS in metric.kinds])
def test_every_metric_of_numbers_takes_whatever_a_model_says(metric: str) -> None:
    for said in (np.zeros(4), np.arange(4.0), np.array([1.0, -3.0, 2.0, 0.5])):
        for right in (np.zeros(4), np.arange(4.0)):
            assert np.isfinite(compute_metrics([metric], said, right)[metric])
