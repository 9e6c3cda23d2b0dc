"""Tasks on tables of one's own, whose classes are those that the table names."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from ..errors import UsageError
from ..training.data import EncodedExamples
from .base import Source, TaskData
from .metrics import METRICS, less_is_better
from .sentences import Sentences, SentenceTask
from .tables import Columns, Table, read_columns, read_table, read_tables

#: More classes than this share of the examples are no classes.
_MOST_CLASSES = 0.5


@dataclass(frozen=True, kw_only=True)
class TableTask(SentenceTask):
    """A class or a number for each text, or pair of texts, of a table.

    Attributes:
        columns: which of the table's are read.
        numbers: whether labels are numbers to be predicted, and not classes.
    """

    columns: Columns = field(default_factory=Columns)
    numbers: bool = False
    sentences: int = 1
    labels: tuple[str, ...] = ()

    def with_options(
        self,
        *,
        text_column: str | None = None,
        text_pair_column: str | None = None,
        label_column: str | None = None,
        metrics: list[str] | None = None,
        **options: Any,
    ) -> Self:
        """See `Task.with_options`."""
        super().with_options(**options)
        names = tuple(metrics or self.metrics)
        known = [name for name, metric in METRICS.items() if metric.of_numbers == self.numbers]
        for name in names:
            if name not in known:
                raise UsageError(f"--metrics: expected of {', '.join(known)} for {self.name}, found {name}")
        if less_is_better(names[0]):
            raise UsageError(f"--metrics: the first is what runs are compared by, more being better; found {names[0]}")
        return replace(
            self,
            columns=Columns(text_column, text_pair_column, label_column or Columns.label),
            sentences=1 if text_pair_column is None else 2,
            metrics=names,
            main_metric=names[0],
        )

    @property
    def is_regression(self) -> bool:
        """See `SentenceTask.is_regression`."""
        return self.numbers

    def load(self, source: Source) -> TaskData:
        """See `Task.load`."""
        train, evaluation = read_tables(source, self.columns)
        return TaskData(train=train, evals={"": evaluation})

    def fitted(self, data: TaskData) -> Self:
        """See `Task.fitted`: with the classes of the training examples, in their own order or sorted."""
        splits: dict[str, Any] = {"training": data.train, "evaluation": data.evals[""]}
        train: Table = splits["training"]
        if self.numbers:
            for name, table in splits.items():
                self._check_numbers(name, table)
            return self
        labels = train.label_names or _sorted({str(label) for label in train.labels})
        _check_classes(labels, train)
        if "f1" in self.metrics and len(labels) > 2:
            raise UsageError(
                f"--metrics f1: it is that of the second of two classes, found {len(labels)}; f1_macro is of all"
            )
        for name, table in splits.items():
            if strange := sorted({str(label) for label in table.labels} - set(labels)):
                raise UsageError(
                    f"--label-column {self.columns.label}: the {name} examples have labels that the training examples "
                    f"do not: {', '.join(strange[:5])}{' and more' if len(strange) > 5 else ''}"
                )
        return replace(self, labels=labels)

    def of_model(self, config: Any) -> Self:
        """See `Task.of_model`."""
        if self.numbers:
            return self
        return replace(self, labels=tuple(config.id2label[index] for index in range(config.num_labels)))

    def read_file(self, path: Path, *, labelled: bool) -> Table:
        """See `Task.read_file`."""
        table = read_columns(read_table(path), str(path), self.columns, labelled=labelled)
        if labelled and self.numbers:
            self._check_numbers(str(path), table)
        elif strange := sorted({str(label) for label in table.labels} - set(self.labels)):
            raise UsageError(
                f"{path}: expected labels of the model, {', '.join(self.labels)}; found {', '.join(strange[:5])} in "
                f"column {self.columns.label}"
            )
        return table

    def _check_numbers(self, name: str, table: Table) -> None:
        for label in table.labels:
            try:
                holds = math.isfinite(float(label))
            except ValueError:
                holds = False
            if not holds:
                raise UsageError(
                    f"--label-column {self.columns.label}: expected numbers, found {label!r} in the {name} examples; "
                    "names are classes, --task classification"
                )

    def encode(self, tokenizer: Any, examples: Table, max_length: int) -> EncodedExamples:  # type: ignore[override]
        """See `Task.encode`."""
        if not examples.labels:
            labels: list[Any] = [0] * len(examples)
        elif self.numbers:
            labels = [float(label) for label in examples.labels]
        else:
            index = {name: i for i, name in enumerate(self.labels)}
            labels = [index[str(label)] for label in examples.labels]
        return super().encode(tokenizer, Sentences(examples.texts, labels), max_length)


def _sorted(names: set[str]) -> tuple[str, ...]:
    """By their value where all are whole numbers."""
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(names))


def _check_classes(labels: tuple[str, ...], table: Table) -> None:
    if len(labels) < 2:
        raise UsageError(f"--label-column: expected two classes at least, found only {', '.join(labels) or 'none'}")
    if len(set(map(str, table.labels))) > max(2, _MOST_CLASSES * len(table)):
        raise UsageError(
            f"--label-column: expected classes of several examples each, found {len(labels)} in {len(table)} examples; "
            "numbers to be predicted are --task regression"
        )


TABLE_TASKS = (
    TableTask(name="classification", metrics=("accuracy", "f1_macro"), main_metric="accuracy"),
    TableTask(name="regression", metrics=("pearson", "mean_squared_error"), main_metric="pearson", numbers=True),
)
