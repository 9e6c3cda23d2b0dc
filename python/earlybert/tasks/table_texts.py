"""Tasks on tables that ask for something of each text, or pair of texts: its class, its labels, or a number."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch.nn import functional

from ..errors import UsageError
from ..training.data import EncodedExamples
from .base import Judgement, TaskData
from .columns import Columns, LabelSets, Table
from .metrics import METRICS, Kind, compute_metrics
from .sentences import Sentences, SentenceTask
from .table_task import TableTask

#: More classes than this share of the examples are no classes.
_MOST_CLASSES = 0.5
#: The probability above which a text is said to have a label.
_THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True)
class _TextTask(TableTask, SentenceTask):
    """Something of each text, or pair of texts, of a table."""

    kind: Kind
    sentences: int = 1

    @property
    def known_metrics(self) -> Sequence[str]:
        """See `TableTask.known_metrics`."""
        return [name for name, metric in METRICS.items() if self.kind in metric.kinds]

    def with_options(self, *, text_pair_column: str | None = None, **options: Any) -> Self:
        """See `Task.with_options`."""
        task = super().with_options(**options)
        columns = replace(task.columns, pair=text_pair_column)
        return replace(task, columns=columns, sentences=1 if text_pair_column is None else 2)

    def encode(self, tokenizer: Any, examples: Table, max_length: int) -> EncodedExamples:  # type: ignore[override]
        """See `Task.encode`."""
        targets = self.targets(examples.labels) if examples.labels else self.targets_of_none(len(examples))
        return super().encode(tokenizer, Sentences(examples.texts, targets), max_length)

    @abstractmethod
    def targets(self, labels: list[Any]) -> list[Any]:
        """What the model is to say: the `labels` of `Sentences`.

        Args:
            labels: those of a `Table`.
        """

    def targets_of_none(self, count: int) -> list[Any]:
        """What stands in the place of `targets` of so many examples without labels."""
        return [0] * count


@dataclass(frozen=True, kw_only=True)
class ClassTask(_TextTask):
    """The class of each text."""

    kind: Kind = Kind.CLASSES

    def check_classes(self, labels: tuple[str, ...], train: Table) -> None:
        """See `TableTask.check_classes`."""
        used = len(train.labels_used())
        if len(labels) < 2:
            raise UsageError(
                f"--label-column: expected two classes at least, found only {', '.join(labels) or 'none'} in "
                f"{len(train)} training examples"
            )
        if used > max(2, _MOST_CLASSES * len(train)):
            raise UsageError(
                f"--label-column: expected classes of several examples each, found {used} in {len(train)} examples; "
                "numbers to be predicted are --task regression"
            )
        if "f1" in self.metrics and len(labels) > 2:
            raise UsageError(
                f"--metrics f1: it is that of the second of two classes, found {len(labels)}; f1_macro is of all"
            )

    def targets(self, labels: list[Any]) -> list[Any]:
        """See `_TextTask.targets`: the indices of the classes."""
        index = {name: i for i, name in enumerate(self.labels)}
        return [index[str(label)] for label in labels]


@dataclass(frozen=True, kw_only=True)
class NumberTask(_TextTask):
    """A number for each text."""

    kind: Kind = Kind.NUMBERS

    @property
    def is_regression(self) -> bool:
        """See `SentenceTask.is_regression`."""
        return True

    def fitted(self, data: TaskData) -> Self:
        """See `Task.fitted`: there are no classes."""
        splits: dict[str, Any] = {"training": data.train, "evaluation": data.evals[""]}
        for name, table in splits.items():
            self._check_numbers(f"the {name} examples", table)
        return self

    def check_classes(self, labels: tuple[str, ...], train: Table) -> None:
        """See `TableTask.check_classes`."""

    def of_model(self, config: Any) -> Self:
        """See `Task.of_model`."""
        return self

    def check_file(self, table: Table, path: Path) -> None:
        """See `TableTask.check_file`."""
        self._check_numbers(str(path), table)

    def _check_numbers(self, where: str, table: Table) -> None:
        for label in table.labels:
            try:
                holds = math.isfinite(float(label))
            except ValueError:
                holds = False
            if not holds:
                raise UsageError(
                    f"--label-column: expected numbers, found {label!r} in {where}; names are classes, "
                    "--task classification"
                )

    def targets(self, labels: list[Any]) -> list[Any]:
        """See `_TextTask.targets`."""
        return [float(label) for label in labels]


@dataclass(frozen=True, kw_only=True)
class LabelSetTask(_TextTask):
    """Any number of labels of each text: those whose probability is above a half."""

    kind: Kind = Kind.LABEL_SETS
    columns: Columns = field(default_factory=LabelSets)

    @property
    def problem_type(self) -> str:
        """See `SentenceTask.problem_type`."""
        return "multi_label_classification"

    def with_options(self, *, label_columns: list[str] | None = None, **options: Any) -> Self:
        """See `Task.with_options`."""
        task = super().with_options(**options)
        if label_columns is None:
            return task
        if task.columns.label is not None:
            raise UsageError(
                "--label-column names one column of lists, and --label-columns one of 0 and 1 for each label"
            )
        if len(set(label_columns)) < len(label_columns):
            raise UsageError(f"--label-columns: expected different columns, found {' '.join(label_columns)}")
        return replace(task, columns=LabelSets(task.columns.text, task.columns.pair, each=tuple(label_columns)))

    def check_classes(self, labels: tuple[str, ...], train: Table) -> None:
        """See `TableTask.check_classes`."""
        if not train.labels_used():
            raise UsageError("--label-column: expected labels, found none in any of the training examples")

    def targets(self, labels: list[Any]) -> list[Any]:
        """See `_TextTask.targets`: for each label 1.0 where an example has it, and 0.0 where not."""
        return [[float(name in own) for name in self.labels] for own in map(set, labels)]

    def targets_of_none(self, count: int) -> list[Any]:
        """See `_TextTask.targets_of_none`."""
        return self.targets([()] * count)

    def answers(self, outputs: Sequence[np.ndarray], encoded: EncodedExamples) -> list[dict[str, Any]]:
        """See `Task.answers`: `labels`, and `scores`, the probability of every label by its name."""
        self.check_finite(outputs)
        return [
            {
                "labels": [name for name, score in scores.items() if score > _THRESHOLD],
                "scores": scores,
            }
            for row in torch.from_numpy(np.stack(outputs)).double().sigmoid().tolist()
            for scores in [dict(zip(self.labels, row, strict=True))]
        ]

    def score(self, outputs: Sequence[np.ndarray], encoded: EncodedExamples) -> Judgement:
        """See `Task.score`."""
        self.check_finite(outputs)
        said = torch.from_numpy(np.stack(outputs)).double().sigmoid() > _THRESHOLD
        right = encoded.targets["labels"].numpy().astype(np.int64)
        return Judgement(compute_metrics(self.metrics, said.numpy().astype(np.int64), right))

    def loss(self, outputs: Sequence[np.ndarray], encoded: EncodedExamples) -> float:
        """See `Task.loss`: binary cross-entropy, the mean over texts and labels."""
        logits, labels = torch.from_numpy(np.stack(outputs)).double(), encoded.targets["labels"].double()
        return functional.binary_cross_entropy_with_logits(logits, labels).item()


TEXT_TASKS = (
    ClassTask(name="classification", metrics=("accuracy", "f1_macro"), main_metric="accuracy"),
    NumberTask(name="regression", metrics=("pearson", "mean_squared_error"), main_metric="pearson"),
    LabelSetTask(name="multilabel", metrics=("f1_micro", "f1_macro", "exact_match"), main_metric="f1_micro"),
)
