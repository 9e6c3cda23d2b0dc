"""The GLUE tasks (arXiv 1804.07461), read from the files of its distribution or from the Hugging Face hub."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MissingFileError, UsageError
from .base import Examples, Source, TaskData
from .reading import check_is_file, read_hub
from .sentences import Sentences, SentenceTask
from .tsv import Row, read_rows

logger = logging.getLogger(__name__)

_HUB_DATASET = "nyu-mll/glue"


@dataclass(frozen=True, kw_only=True)
class GlueTask(SentenceTask):
    """A task of GLUE and the format of its files.

    Attributes:
        columns: the names of the columns that hold the sentences.
        label_column: the name of the column that holds the label.
        hub_columns: the names of the sentences' columns on the hub.
        label_spelling: how the files spell each label; the labels' names where empty.
        label_range: smallest and largest target of a regression.
        header: None where a file names its columns in its first line (CoLA's do not): their names.
        eval_files: name of the split -> (file, split on the hub).
        skip_broken_rows: leave out rows with a wrong number of columns instead of refusing the file.
    """

    columns: tuple[str, ...]
    label_column: str = "label"
    hub_columns: tuple[str, ...]
    label_spelling: tuple[str, ...] = ()
    label_range: tuple[float, float] = (0.0, 0.0)
    header: tuple[str, ...] | None = None
    eval_files: tuple[tuple[str, str, str], ...] = (("", "dev.tsv", "validation"),)
    skip_broken_rows: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """The files that `load` reads from a data directory."""
        return ("train.tsv", *(file for _, file, _ in self.eval_files))

    def load(self, source: Source) -> TaskData:
        """See `Task.load`. A single evaluation file is the first split's."""
        files = source.files()
        if files is not None:
            train, evals = files[0], {self.eval_files[0][0]: files[1]}
        elif source.data_dir is not None:
            train, evals = source.data_dir / "train.tsv", {n: source.data_dir / f for n, f, _ in self.eval_files}
        else:
            return self._load_from_hub()
        for path in (train, *evals.values()):
            if not path.is_file():
                what = "a folder, expected a file" if path.is_dir() else "no such file"
                raise MissingFileError(
                    f"{path}: {what}; task {self.name} needs {', '.join(self.files)} "
                    "of the GLUE distribution in its data directory"
                )
        return TaskData(train=self.read(train), evals={name: self.read(path) for name, path in evals.items()})

    def own_tests(self, source: Source) -> dict[str, Examples]:
        """See `Task.own_tests`."""
        if source.data_dir is not None:
            files = {name: source.data_dir / file.replace("dev", "test") for name, file, _ in self.eval_files}
            return {name: self.read_file(path, labelled=False) for name, path in files.items()}
        if source.files() is not None:
            return super().own_tests(source)
        dataset = self._read_hub()
        splits = {name: split.replace("validation", "test") for name, _, split in self.eval_files}
        # Where an answer is due the hub has -1.
        return {n: Sentences(self._hub_texts(dataset[s]), [0] * len(dataset[s])) for n, s in splits.items()}

    def read_file(self, path: Path, *, labelled: bool) -> Sentences:
        """See `Task.read_file`."""
        check_is_file(path)
        return self.read(path, labelled=labelled)

    def read(self, path: Path, *, labelled: bool = True) -> Sentences:
        """Reads one file; one without labels names its columns in its first line, whatever the task.

        Raises:
            UsageError: naming file and line, where the file is not in the task's format.
        """
        rows = read_rows(path)
        header = self.header if labelled else None
        needed = (*self.columns, self.label_column) if labelled else self.columns
        if header is None:
            first = next(rows, Row(path, 1, []))
            header = tuple(first.fields)
            absent = [name for name in needed if name not in header]
            if absent:
                raise first.error(
                    f"expected a header that names the columns {', '.join(needed)}, found none named "
                    f"{', '.join(absent)}"
                )
        sentence_columns = [header.index(name) for name in self.columns]
        label_column = header.index(self.label_column) if labelled else None

        texts: list[tuple[str, ...]] = []
        labels: list[float] = []
        broken = 0
        for row in rows:
            if self.skip_broken_rows and len(row.fields) != len(header):
                broken += 1
                continue
            row.check_columns(len(header))
            texts.append(tuple(row.fields[column] for column in sentence_columns))
            labels.append(0 if label_column is None else self._label(row, row.fields[label_column]))
        if not texts:
            raise UsageError(f"{path}: expected at least one example, found none")
        if broken:
            logger.warning("%s: left out %d rows with a wrong number of columns", path, broken)
        return Sentences(texts, labels)

    def spell(self, answer: Mapping[str, Any]) -> str:
        """See `Task.spell`."""
        if self.is_regression or not self.label_spelling:
            return super().spell(answer)
        return self.label_spelling[self.labels.index(answer["label"])]

    def _label(self, row: Row, text: str) -> float:
        if self.is_regression:
            low, high = self.label_range
            try:
                value = float(text)
            except ValueError:
                value = float("nan")
            if not low <= value <= high:
                raise row.error(f"expected a number from {low:g} to {high:g} as label, found {text!r}")
            return value
        spelling = self.label_spelling or self.labels
        if text not in spelling:
            raise row.error(f"expected one of {', '.join(spelling)} as label, found {text!r}")
        return spelling.index(text)

    def _read_hub(self) -> Any:
        return read_hub(
            _HUB_DATASET,
            self.name,
            what=f"task {self.name} ({_HUB_DATASET})",
            instead=f"To read it from a folder with {', '.join(self.files)}, give --data-dir.",
        )

    def _hub_texts(self, rows: Any) -> list[tuple[str, ...]]:
        return list(zip(*(rows[name] for name in self.hub_columns), strict=True))

    def _load_from_hub(self) -> TaskData:
        dataset = self._read_hub()

        def examples(split: str) -> Sentences:
            return Sentences(self._hub_texts(dataset[split]), list(dataset[split]["label"]))

        return TaskData(train=examples("train"), evals={name: examples(split) for name, _, split in self.eval_files})


_ENTAILMENT = ("entailment", "not_entailment")

#: Every task of GLUE with a development set that has labels. The order of the labels is the hub's.
GLUE_TASKS: tuple[GlueTask, ...] = (
    GlueTask(
        name="cola",
        sentences=1,
        labels=("unacceptable", "acceptable"),
        label_spelling=("0", "1"),
        metrics=("matthews_correlation",),
        main_metric="matthews_correlation",
        header=("source", "label", "mark", "sentence"),
        columns=("sentence",),
        hub_columns=("sentence",),
    ),
    GlueTask(
        name="mnli",
        sentences=2,
        labels=("entailment", "neutral", "contradiction"),
        metrics=("accuracy",),
        main_metric="accuracy",
        columns=("sentence1", "sentence2"),
        label_column="gold_label",
        hub_columns=("premise", "hypothesis"),
        eval_files=(
            ("", "dev_matched.tsv", "validation_matched"),
            ("mismatched", "dev_mismatched.tsv", "validation_mismatched"),
        ),
    ),
    GlueTask(
        name="mrpc",
        sentences=2,
        labels=("not_equivalent", "equivalent"),
        label_spelling=("0", "1"),
        metrics=("f1", "accuracy"),
        main_metric="f1",
        columns=("#1 String", "#2 String"),
        label_column="Quality",
        hub_columns=("sentence1", "sentence2"),
    ),
    GlueTask(
        name="qnli",
        sentences=2,
        labels=_ENTAILMENT,
        metrics=("accuracy",),
        main_metric="accuracy",
        columns=("question", "sentence"),
        hub_columns=("question", "sentence"),
    ),
    GlueTask(
        name="qqp",
        sentences=2,
        labels=("not_duplicate", "duplicate"),
        label_spelling=("0", "1"),
        metrics=("f1", "accuracy"),
        main_metric="f1",
        columns=("question1", "question2"),
        label_column="is_duplicate",
        hub_columns=("question1", "question2"),
        # A few questions of the distribution's files have line feeds and tabs in them: their rows are torn.
        skip_broken_rows=True,
    ),
    GlueTask(
        name="rte",
        sentences=2,
        labels=_ENTAILMENT,
        metrics=("accuracy",),
        main_metric="accuracy",
        columns=("sentence1", "sentence2"),
        hub_columns=("sentence1", "sentence2"),
    ),
    GlueTask(
        name="sst2",
        sentences=1,
        labels=("negative", "positive"),
        label_spelling=("0", "1"),
        metrics=("accuracy",),
        main_metric="accuracy",
        columns=("sentence",),
        hub_columns=("sentence",),
    ),
    GlueTask(
        name="stsb",
        sentences=2,
        labels=(),
        label_range=(0.0, 5.0),
        metrics=("pearson", "spearman"),
        main_metric="pearson",
        columns=("sentence1", "sentence2"),
        label_column="score",
        hub_columns=("sentence1", "sentence2"),
    ),
    GlueTask(
        name="wnli",
        sentences=2,
        labels=("not_entailment", "entailment"),
        label_spelling=("0", "1"),
        metrics=("accuracy",),
        main_metric="accuracy",
        columns=("sentence1", "sentence2"),
        hub_columns=("sentence1", "sentence2"),
    ),
)
