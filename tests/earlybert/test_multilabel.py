"""Fine-tuning on tables whose texts have any number of labels."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import earlybert_kernels as ek
from earlybert import FinetuneArguments, evaluate, finetune, predict
from earlybert.cli import main
from earlybert.errors import UsageError
from earlybert.tasks import TASKS, Source
from earlybert.tasks.columns import LabelSets, Table
from earlybert.tasks.metrics import METRICS, Kind, compute_metrics
from earlybert.tasks.tables import read_tables
from earlybert.training.batches import BatchMaker
from tests.helpers.tables import write_table
from tests.helpers.toy import FILLERS, WORDS

Make = Callable[..., FinetuneArguments]
CPU = torch.device("cpu")
TASK = TASKS["multilabel"]
TEXTS = ["a good film", "the plot", "bad bad good"]
SETS = [("good",), (), ("bad", "good")]


def toy_columns(rows: int, seed: int) -> dict[str, list[Any]]:
    """Texts with good words, bad words, both or none, and which of these they have."""
    generator = random.Random(seed)
    columns: dict[str, list[Any]] = {"text": [], "labels": []}
    for row in range(rows):
        own = [name for bit, name in ((1, "bad"), (2, "good")) if row & bit]
        words = generator.choices(FILLERS, k=3)
        words += [word for name in own for word in generator.choices(WORDS[int(name == "good")], k=2)]
        generator.shuffle(words)
        columns["text"].append(" ".join(words))
        columns["labels"].append(own)
    return columns


@pytest.fixture
def toy(tmp_path: Path) -> dict[str, Any]:
    """The arguments that name the toy table's files."""
    for name, rows in (("train", 96), ("dev", 24)):
        write_table(tmp_path / f"{name}.jsonl", toy_columns(rows, seed=rows))
    files = {"train_file": str(tmp_path / "train.jsonl"), "validation_file": str(tmp_path / "dev.jsonl")}
    return {"task": "multilabel", "data_dir": None, **files}


def read(path: Path, **columns: Any) -> Table:
    return read_tables(Source(train_file=path, validation_file=path), LabelSets(**columns))[0]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_labels_are_lists_where_a_cell_can_be_one(tmp_path: Path, suffix: str) -> None:
    path = write_table(tmp_path / f"t{suffix}", {"text": TEXTS, "labels": [list(own) for own in SETS]})
    assert read(path) == Table([(text,) for text in TEXTS], SETS)
    numbers = write_table(tmp_path / f"n{suffix}", {"text": TEXTS, "topics": [[3], [], [10, 3]]})
    assert read(numbers, label="topics").labels == [("3",), (), ("10", "3")]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_labels_are_columns_of_0_and_1_in_any_file(tmp_path: Path, suffix: str) -> None:
    path = write_table(tmp_path / f"t{suffix}", {"text": TEXTS, "good": [1, 0, 1], "bad": [0, 0, 1]})
    assert read(path, each=("bad", "good")) == Table([(text,) for text in TEXTS], SETS, ("bad", "good"))
    if suffix in (".jsonl", ".parquet"):
        marks = {"text": TEXTS, "good": [True, False, True], "bad": [0.0, 0.0, 1.0]}
        assert read(write_table(tmp_path / f"u{suffix}", marks), each=("bad", "good")).labels == SETS


def test_saved_datasets_keep_the_names_of_their_labels(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "labels": List(ClassLabel(names=["z", "a", "unused"]))})
    split = Dataset.from_dict({"text": TEXTS, "labels": [[0], [], [1, 0]]}, features=features)
    DatasetDict(train=split, validation=split).save_to_disk(str(tmp_path / "saved"))
    data = TASK.load(Source(data_dir=tmp_path / "saved"))
    assert data.train.labels == [("z",), (), ("a", "z")]
    assert TASK.fitted(data).labels == ("z", "a", "unused")


@pytest.mark.parametrize(
    ("columns", "asked", "expected"),
    [
        ({"labels": ["bad"] * 3}, {}, "row 1: expected a list of labels in column labels, found 'bad'; lists are in"),
        ({"labels": [["bad"], None, []]}, {}, "row 2: expected a list of labels in column labels, found nothing"),
        ({"labels": [["a"], ["b"], [None]]}, {}, "row 3: expected names or whole numbers of labels in column labels"),
        ({"labels": [[0.0, 1.0]] * 3}, {}, "expected names or whole numbers of labels in column labels, found 0.0"),
        ({"labels": [[0, 1, 0]] * 3}, {}, "row 1: .*found 0 twice; rows of 0 and 1 belong into a column"),
        ({"x": [1, 2, 0]}, {"each": ("x",)}, "row 2: expected 0 or 1 in column x, found 2"),
        ({"x": [1, 0, None]}, {"each": ("x",)}, "row 3: expected 0 or 1 in column x, found None"),
        ({"x": [1, 0, 0]}, {"each": ("x", "y")}, "--label-columns: expected a column of .*text, x; found none named y"),
        ({"x": [1, 0, 0]}, {}, "--label-column: .*; found none named labels or label; .*--label-columns"),
    ],
)  # fmt: skip
def test_what_is_no_set_of_labels_is_refused(
    tmp_path: Path, columns: dict[str, Any], asked: dict[str, Any], expected: str
) -> None:
    path = write_table(tmp_path / "t.jsonl", {"text": TEXTS, **columns})
    with pytest.raises(UsageError, match=expected) as error:
        read(path, **asked)
    assert "\n" not in str(error.value)


def test_a_csv_has_no_lists(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", {"text": TEXTS, "labels": ["bad", "", "bad, good"]})
    with pytest.raises(UsageError, match="found 'bad'; .*a column of 0 and 1 for each label with --label-columns"):
        read(path)


def test_flags_that_do_not_fit_are_refused(toy: dict[str, Any], arguments: Make) -> None:
    for changes, message in (
        ({"label_column": "labels", "label_columns": ["a"]}, "--label-column names one column of lists, and"),
        ({"label_columns": ["a", "a"]}, "--label-columns: expected different columns, found a a"),
        ({"metrics": ["accuracy"]}, "--metrics: expected of f1_micro, .*exact_match for multilabel, found accuracy"),
    ):
        with pytest.raises(UsageError, match=message):
            finetune(arguments(**toy, **changes))
    with pytest.raises(UsageError, match="--label-columns says nothing to task classification"):
        finetune(arguments(**{**toy, "task": "classification"}, label_columns=["a"]))
    dev = Path(toy["validation_file"])
    write_table(dev, {"text": TEXTS, "labels": [["ugly"], [], []]})
    with pytest.raises(UsageError, match="the evaluation examples have labels that the training examples do not: ugly"):
        finetune(arguments(**toy))
    write_table(dev, {"text": TEXTS, "good": [0] * 3})
    with pytest.raises(UsageError, match="expected labels, found none in any of the training examples"):
        finetune(arguments(**{**toy, "train_file": str(dev)}, label_columns=["good"]))


def encoded(tiny_bert: str, labels: tuple[str, ...]) -> Any:
    from dataclasses import replace

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    return replace(TASK, labels=labels).encode(tokenizer, Table([(text,) for text in TEXTS], SETS), 16)


# A text of three words has five tokens: as many labels must not pass for labels of tokens.
@pytest.mark.parametrize("labels", [("bad", "good"), ("bad", "good", "u", "v", "w")], ids=["two", "as-many-as-tokens"])
def test_the_loss_is_that_of_stock_transformers(tiny_bert: str, labels: tuple[str, ...]) -> None:
    examples = encoded(tiny_bert, labels)
    assert examples[2]["labels"].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0][: len(labels)]
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_bert, num_labels=len(labels), problem_type="multi_label_classification"
    ).eval()
    alone = torch.cat([model(input_ids=examples[i]["input_ids"][None]).logits for i in range(3)])
    expected = functional.binary_cross_entropy(alone.double().sigmoid(), examples.targets["labels"].double())

    padded = BatchMaker(model, examples, CPU)([0, 1, 2])
    assert padded["labels"].shape == (3, len(labels)) and "attention_mask" in padded
    packed = BatchMaker(ek.convert(model), examples, CPU)([0, 1, 2])
    assert packed["labels"].shape == (3, len(labels)) and "cu_seq_lens_q" in packed
    for batch in (packed, padded):
        output = model(**batch)
        torch.testing.assert_close(output.logits, alone, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(output.loss.double(), expected, atol=1e-6, rtol=1e-5)
    ek.restore(model)
    torch.testing.assert_close(model(**padded).loss.double(), expected, atol=1e-6, rtol=1e-5)


def test_metrics_by_hand() -> None:
    right = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]])
    said = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0]])
    # Of the four labels that are said three are right, and of the four that there are three are found.
    # Of the first label 2 of 3 that are said and 2 of 2; of the second 1 of 1 and 1 of 2; of the third none is there.
    expected = {
        "f1_micro": 3 / 4, "precision_micro": 3 / 4, "recall_micro": 3 / 4, "exact_match": 2 / 4,
        "f1_macro": (4 / 5 + 2 / 3 + 0) / 3, "precision_macro": (2 / 3 + 1 + 0) / 3, "recall_macro": (1 + 1 / 2) / 3,
        "f1_weighted": (4 / 5 + 2 / 3) / 2,
    }  # fmt: skip
    names = [name for name, metric in METRICS.items() if Kind.LABEL_SETS in metric.kinds]
    assert compute_metrics(names, said, right) == pytest.approx(expected)
    for answer in (np.zeros((4, 1), int), np.ones((4, 1), int)):
        assert all(0 <= value <= 1 for value in compute_metrics(names, answer, answer[::-1]).values())


@pytest.mark.parametrize(("method", "kernels"), [("earlybert", "auto"), ("random", "auto"), ("inverted", "off")])
def test_a_run_learns_predicts_and_keeps_the_names(
    arguments: Make, toy: dict[str, Any], tmp_path: Path, method: str, kernels: str
) -> None:
    args = arguments(**toy, method=method, kernels=kernels, max_steps=80)
    result = finetune(args)
    assert list(result["eval"]) == ["f1_micro", "f1_macro", "exact_match", "eval_loss"]
    assert result["eval"]["f1_micro"] > 0.8, "the toy task is easy"
    assert main(["verify", args.output_dir]) == 0
    assert evaluate(args.output_dir, toy["validation_file"]) == pytest.approx(result["eval"], rel=1e-5)

    unlabelled = write_table(tmp_path / "texts.csv", {"text": TEXTS})
    predict(args.output_dir, str(unlabelled), str(tmp_path / "p.jsonl"))
    predict(args.output_dir, str(unlabelled), str(tmp_path / "p.tsv"))
    answers = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    model = ek.to_stock(AutoModelForSequenceClassification.from_pretrained(f"{args.output_dir}/model")).eval()
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert model.config.problem_type == "multi_label_classification"
    batch = AutoTokenizer.from_pretrained(f"{args.output_dir}/model")(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        scores = model(**batch).logits.sigmoid()
    for answer, row in zip(answers, scores.tolist(), strict=True):
        assert answer["scores"] == pytest.approx({"bad": row[0], "good": row[1]}, abs=1e-4)
        assert answer["labels"] == [name for name, score in answer["scores"].items() if score > 0.5]
    expected = [f"{i}\t{json.dumps(answer['labels'])}" for i, answer in enumerate(answers)]
    assert (tmp_path / "p.tsv").read_text().splitlines() == ["index\tprediction", *expected]
    strange = write_table(tmp_path / "strange.jsonl", {"text": ["a"], "labels": [["ugly"]]})
    with pytest.raises(UsageError, match="expected labels of the model, bad, good; found ugly"):
        evaluate(args.output_dir, str(strange))


def test_one_command_reads_columns_of_0_and_1(tiny_bert: str, tmp_path: Path) -> None:
    columns = toy_columns(40, seed=1)
    marks = {name: [int(name in own) for own in columns["labels"]] for name in ("good", "bad")}
    path = write_table(tmp_path / "t.csv", {"review": columns["text"], **marks})
    argv = [
        "finetune", "--model", tiny_bert, "--task", "multilabel", "--train-file", str(path), "--text-column", "review",
        "--label-columns", "good", "bad", "--metrics", "exact_match", "--method", "dense", "--max-steps", "2",
        "--max-length", "16", "--output-dir", str(tmp_path / "run"), "--device", "cpu",
    ]  # fmt: skip
    assert main(argv) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert list(metrics["eval"]) == ["exact_match", "eval_loss"]
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "good", "1": "bad"}
    assert main(["evaluate", str(tmp_path / "run"), str(path)]) == 0
