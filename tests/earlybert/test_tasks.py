from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from earlybert.errors import UsageError
from earlybert.tasks import TASKS, GlueTask, SentenceTask, Source, get_task
from earlybert.tasks.base import TaskData
from earlybert.tasks.pydocs import DEV_PER_CLASS, TRAIN_PER_CLASS, split_sentences
from earlybert.training.data import EncodedExamples

# Two rows of each task's train file, as GLUE's distribution writes them, with what has to come out.
HEADERS = {
    "mnli": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse"
    "\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
    "mrpc": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "qnli": "index\tquestion\tsentence\tlabel",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "rte": "index\tsentence1\tsentence2\tlabel",
    "sst2": "sentence\tlabel",
    "stsb": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
    "wnli": "index\tsentence1\tsentence2\tlabel",
}
ROWS = {
    "cola": (["gj04\t1\t\tA b.", "gj04\t0\t*\tC d."], [(("A b.",), 1), (("C d.",), 0)]),
    "mnli": (
        [
            "0\t1\t2\tfiction\t(\t(\t(\t(\tA b.\tC d.\tneutral\tcontradiction",
            "1\t1\t2\tx\t(\t(\t(\t(\tE\tF\t-\tneutral",
        ],
        [(("A b.", "C d."), 2), (("E", "F"), 1)],
    ),
    "mrpc": (['1\t7\t8\tA " b .\tC d .', "0\t7\t8\tE\tF"], [(('A " b .', "C d ."), 1), (("E", "F"), 0)]),
    "qnli": (["0\tA?\tB.\tnot_entailment", "1\tC?\tD.\tentailment"], [(("A?", "B."), 1), (("C?", "D."), 0)]),
    "qqp": (["1\t2\t3\tA?\tB?\t1", "4\t5\t6\tC?\tD?\t0"], [(("A?", "B?"), 1), (("C?", "D?"), 0)]),
    "rte": (["0\tA.\tB.\tentailment", "1\tC.\tD.\tnot_entailment"], [(("A.", "B."), 0), (("C.", "D."), 1)]),
    "sst2": (["a b \t1", "c \t0"], [(("a b ",), 1), (("c ",), 0)]),
    "stsb": (
        ["0\tnews\tf\t2012\t1\ta\tb\tA.\tB.\t5.000", "1\tnews\tf\t2012\t1\ta\tb\tC.\tD.\t2.25"],
        [(("A.", "B."), 5.0), (("C.", "D."), 2.25)],
    ),
    "wnli": (["0\tA.\tB.\t1", "1\tC.\tD.\t0"], [(("A.", "B."), 1), (("C.", "D."), 0)]),
}


def write(folder: Path, task: str, rows: list[str], name: str = "train.tsv") -> Path:
    lines = [HEADERS[task], *rows] if task in HEADERS else rows
    path = folder / name
    path.write_bytes("\n".join(lines).encode())
    return path


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("ending", ["", "\n"], ids=["without-final-newline", "with-final-newline"])
def test_reads_every_format(tmp_path: Path, task: str, ending: str) -> None:
    rows, expected = ROWS[task]
    path = write(tmp_path, task, rows)
    path.write_bytes(path.read_bytes() + ending.encode())
    examples = TASKS[task].read(path)
    assert list(zip(examples.texts, examples.labels, strict=True)) == expected


def test_every_glue_task_is_covered() -> None:
    assert set(ROWS) == {name for name, task in TASKS.items() if isinstance(task, GlueTask)}


def test_mnli_development_files_have_more_columns(tmp_path: Path) -> None:
    header = HEADERS["mnli"].replace("label1", "label1\tlabel2\tlabel3\tlabel4\tlabel5")
    path = tmp_path / "dev_matched.tsv"
    path.write_text(header + "\n" + "\t".join(["0"] * 8 + ["A", "B"] + ["x"] * 5 + ["entailment"]) + "\n")
    examples = TASKS["mnli"].read(path)
    assert examples.texts == [("A", "B")]
    assert examples.labels == [0]


def test_mnli_has_two_evaluation_splits(tmp_path: Path) -> None:
    rows, _ = ROWS["mnli"]
    for name, count in (("train.tsv", 2), ("dev_matched.tsv", 2), ("dev_mismatched.tsv", 1)):
        write(tmp_path, "mnli", rows[:count], name)
    data = TASKS["mnli"].load(Source(tmp_path))
    assert {name: len(examples) for name, examples in data.evals.items()} == {"": 2, "mismatched": 1}


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    text = "a\u2028b\x85c\x0bd\x1ce"
    assert TASKS["sst2"].read(write(tmp_path, "sst2", [f"{text}\t1"])).texts == [(text,)]


def test_carriage_returns_are_no_part_of_a_label(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_bytes(b"sentence\tlabel\r\ngood\t1\r\n")
    assert TASKS["sst2"].read(path).labels == [1]


def refusal(task: str, path: Path) -> str:
    with pytest.raises(UsageError) as error:
        TASKS[task].read(path)
    return str(error.value)


def test_refuses_a_row_with_a_wrong_number_of_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "sst2", ["good\t1", "bad"])
    assert refusal("sst2", path) == f"{path}:3: expected 2 tab-separated columns, found 1"
    path = write(tmp_path, "cola", ["gj04\t1\t\ta", "gj04\t1\t\ta\tb"])
    assert refusal("cola", path) == f"{path}:2: expected 4 tab-separated columns, found 5"


def test_refuses_an_empty_line_in_the_middle(tmp_path: Path) -> None:
    path = write(tmp_path, "sst2", ["good\t1", "", "bad\t0"])
    assert refusal("sst2", path) == f"{path}:3: expected 2 tab-separated columns, found 1"


@pytest.mark.parametrize(
    ("task", "row", "expected"),
    [
        ("sst2", "good\t2", "expected one of 0, 1 as label, found '2'"),
        ("cola", "gj04\tyes\t\ta", "expected one of 0, 1 as label, found 'yes'"),
        ("rte", "0\ta\tb\t1", "expected one of entailment, not_entailment as label, found '1'"),
        ("stsb", "0\tn\tf\ty\t1\ta\tb\tA\tB\t5.1", "expected a number from 0 to 5 as label, found '5.1'"),
        ("stsb", "0\tn\tf\ty\t1\ta\tb\tA\tB\tfive", "expected a number from 0 to 5 as label, found 'five'"),
        ("stsb", "0\tn\tf\ty\t1\ta\tb\tA\tB\tnan", "expected a number from 0 to 5 as label, found 'nan'"),
    ],
)
def test_refuses_a_label_outside_the_task(tmp_path: Path, task: str, row: str, expected: str) -> None:
    path = write(tmp_path, task, [row])
    assert refusal(task, path) == f"{path}:{len(path.read_text().splitlines())}: {expected}"


def test_refuses_a_file_of_another_task(tmp_path: Path) -> None:
    path = write(tmp_path, "sst2", ["good\t1"])
    assert refusal("rte", path) == (
        f"{path}:1: expected a header that names the columns sentence1, sentence2, label, "
        "found none named sentence1, sentence2"
    )


def test_refuses_empty_files(tmp_path: Path) -> None:
    path = write(tmp_path, "sst2", [])
    assert "expected at least one example, found none" in refusal("sst2", path)
    path.write_bytes(b"")
    assert f"{path}:1: expected a header" in refusal("sst2", path)


def test_refuses_what_is_not_utf8(tmp_path: Path) -> None:
    path = write(tmp_path, "sst2", ["good\t1"])
    path.write_bytes(path.read_bytes() + b"\nna\xefve\t1\n")
    assert f"{path}:3: expected UTF-8 text" in refusal("sst2", path)


def test_torn_rows_of_qqp_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, "qqp", ["1\t2\t3\tA?\tB?\t1", "1\t2\t3\tbroken", "question?\t0", "4\t5\t6\tC?\tD?\t0"])
    assert TASKS["qqp"].read(path).labels == [1, 0]
    assert "left out 2 rows" in caplog.text


def test_a_missing_file_is_named_with_what_the_task_needs(tmp_path: Path) -> None:
    write(tmp_path, "sst2", ["good\t1"])
    with pytest.raises(FileNotFoundError) as error:
        TASKS["sst2"].load(Source(tmp_path))
    assert isinstance(error.value, UsageError)
    assert str(error.value) == (
        f"{tmp_path / 'dev.tsv'}: no such file; task sst2 needs train.tsv, dev.tsv of the GLUE distribution "
        "in its data directory"
    )


def test_an_unknown_task_is_refused_with_the_list() -> None:
    with pytest.raises(
        UsageError, match=r"unknown task 'sst'; the tasks are classification, .*, mnli, .*, squad, squad_v2, pydocs"
    ):
        get_task("sst")


def test_the_hub_being_away_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*args: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        UsageError, match=r"nyu-mll/glue\) could not be read .*no network.*train.tsv, dev.tsv, give --data-dir"
    ):
        TASKS["sst2"].load(Source())


def test_reads_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    split = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [0, 2]}
    seen = []

    def load_dataset(*args: str) -> dict:
        seen.append(args)
        return {"train": split, "validation_matched": split, "validation_mismatched": split}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = TASKS["mnli"].load(Source())
    assert seen == [("nyu-mll/glue", "mnli")]
    assert data.train.texts == [("a", "c"), ("b", "d")]
    assert data.evals["mismatched"].labels == [0, 2]


def score(task: SentenceTask, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return task.score(list(outputs), EncodedExamples({}, {}, {"labels": torch.from_numpy(labels)})).metrics


def test_metrics_are_the_official_ones() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(200, 2))
    labels = generator.integers(0, 2, 200)
    guess = logits[:, 1] > logits[:, 0]
    tp, fp = (guess & (labels == 1)).sum(), (guess & (labels == 0)).sum()
    fn, tn = (~guess & (labels == 1)).sum(), (~guess & (labels == 0)).sum()
    accuracy, f1 = (tp + tn) / 200, 2 * tp / (2 * tp + fp + fn)
    matthews = (tp * tn - fp * fn) / np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    assert score(TASKS["sst2"], logits, labels) == pytest.approx({"accuracy": accuracy})
    assert score(TASKS["mrpc"], logits, labels) == pytest.approx({"f1": f1, "accuracy": accuracy})
    assert score(TASKS["cola"], logits, labels) == pytest.approx({"matthews_correlation": matthews})


def test_correlations() -> None:
    outputs = np.array([[1.0], [2.0], [4.0], [3.0]])
    labels = np.array([0.5, 2.5, 3.0, 5.0])
    values = score(TASKS["stsb"], outputs, labels)
    assert values["pearson"] == pytest.approx(np.corrcoef(outputs[:, 0], labels)[0, 1])
    assert values["spearman"] == pytest.approx(0.8), "1 - 6 * (1 + 1) / (4 * 15)"
    assert score(TASKS["stsb"], np.ones((4, 1)), labels) == {"pearson": 0.0, "spearman": 0.0}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("said", [0, 1])
@pytest.mark.parametrize("task", ["cola", "mrpc", "qqp", "sst2"])
def test_a_model_that_says_one_class_is_judged_without_a_warning(task: str, said: int, label: int) -> None:
    values = score(TASKS[task], np.eye(2)[[said] * 4], np.array([label] * 4))
    assert values[TASKS[task].main_metric] == (said == label if task == "sst2" else task != "cola" and said * label)


@pytest.mark.filterwarnings("error")
def test_numbers_that_hardly_differ_or_are_huge_are_correlated_without_a_warning() -> None:
    labels = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    for outputs in ([1.0, 1.0000001, 1.0000002], [-3e38, 0.0, 3e38]):
        values = score(TASKS["stsb"], np.array(outputs, dtype=np.float32)[:, None], labels)
        assert values == pytest.approx({"pearson": 1.0, "spearman": 1.0}, abs=0.01)


def test_outputs_that_are_not_finite_are_not_judged() -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        score(TASKS["sst2"], np.array([[np.nan, 0.0]]), np.array([0]))


def test_every_task_has_its_main_metric() -> None:
    for task in TASKS.values():
        if isinstance(task, SentenceTask):
            assert task.main_metric in task.metrics


@pytest.fixture(scope="module")
def pydocs() -> TaskData:
    """What a task is made of takes seconds."""
    random.seed(1)
    return TASKS["pydocs"].load(Source())


def test_pydocs_is_balanced_and_disjoint(pydocs: TaskData) -> None:
    data, dev = pydocs, pydocs.evals[""]
    classes = range(5)
    assert [data.train.labels.count(label) for label in classes] == [TRAIN_PER_CLASS] * 5
    assert [dev.labels.count(label) for label in classes] == [DEV_PER_CLASS] * 5
    texts = [text.casefold() for (text,) in data.train.texts + dev.texts]
    assert len(set(texts)) == len(texts)
    assert data.train.labels != sorted(data.train.labels)


def test_pydocs_is_the_same_every_time(pydocs: TaskData) -> None:
    random.seed(2)
    assert pydocs == TASKS["pydocs"].load(Source())


def test_pydocs_takes_no_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes no files of others"):
        TASKS["pydocs"].load(Source(tmp_path))


def test_sentences_are_plain() -> None:
    text = (
        'Return the "value" of *name* in the\nmapping. Short one. Another sentence that ends here.\n\n'
        ">>> call(this) is code and no sentence at all.\n\nno capital at the start of this one."
    )
    assert list(split_sentences(text)) == [
        "Return the value of name in the mapping.",
        "Another sentence that ends here.",
    ]


@pytest.mark.parametrize(
    ("task", "train", "dev", "last"),
    [
        ("sst2", 67_349, 872, 1),
        ("cola", 8_551, 1_043, 1),
        ("mrpc", 3_668, 408, 1),
    ],
)
def test_reads_the_real_files(data_dir: Path, task: str, train: int, dev: int, last: int) -> None:
    data = TASKS[task].load(Source(data_dir / task))
    assert (len(data.train), len(data.evals[""])) == (train, dev)
    assert data.evals[""].labels[-1] == last
    assert all(len(texts) == TASKS[task].sentences for texts in data.train.texts)
