"""What tasks on tables of one's own have in common: their classes are those that the table names."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from ..errors import UsageError
from .base import Source, Task, TaskData
from .columns import Columns, Table
from .metrics import less_is_better
from .tables import read_table, read_tables

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TableTask(Task):
    """A task on a table.

    Attributes:
        columns: which of the table's are read.
        labels: names of the classes in the order of their indices; empty before `fitted`.
        metrics: the names of its metrics.
    """

    columns: Columns = field(default_factory=Columns)
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...]

    @property
    @abstractmethod
    def known_metrics(self) -> Sequence[str]:
        """All that `--metrics` may name."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """See `Task.metric_names`."""
        return self.metrics

    def with_options(
        self,
        *,
        text_column: str | None = None,
        label_column: str | None = None,
        metrics: list[str] | None = None,
        **options: Any,
    ) -> Self:
        """See `Task.with_options`."""
        task = super().with_options(**options)
        names = tuple(metrics or self.metrics)
        for name in names:
            if name not in self.known_metrics:
                known = ", ".join(self.known_metrics)
                raise UsageError(f"--metrics: expected of {known} for {self.name}, found {name}")
        if less_is_better(names[0]):
            raise UsageError(f"--metrics: the first is what runs are compared by, more being better; found {names[0]}")
        columns = replace(task.columns, text=text_column, label=label_column)
        return replace(task, columns=columns, metrics=names, main_metric=names[0])

    def load(self, source: Source) -> TaskData:
        """See `Task.load`."""
        train, evaluation = read_tables(source, self.columns)
        return TaskData(train=train, evals={"": evaluation})

    def fitted(self, data: TaskData) -> Self:
        """See `Task.fitted`: with the classes of the training examples, in their own order or sorted."""
        splits: dict[str, Any] = {"training": data.train, "evaluation": data.evals[""]}
        train: Table = splits["training"]
        labels = train.label_names or _sorted(train.labels_used())
        self.check_classes(labels, train)
        _warn_of_look_alikes(labels)
        for name, table in splits.items():
            if strange := sorted(table.labels_used() - set(labels)):
                raise UsageError(
                    f"--label-column: the {name} examples have labels that the training examples do not: "
                    f"{', '.join(strange[:5])}{' and more' if len(strange) > 5 else ''}"
                )
        return replace(self, labels=labels)

    @abstractmethod
    def check_classes(self, labels: tuple[str, ...], train: Table) -> None:
        """Checks that the task has a meaning with these classes.

        Args:
            labels: their names.
            train: the training examples.

        Raises:
            UsageError: it has none, or one of the metrics has none.
        """

    def of_model(self, config: Any) -> Self:
        """See `Task.of_model`."""
        return replace(self, labels=tuple(config.id2label[index] for index in range(config.num_labels)))

    def read_file(self, path: Path, *, labelled: bool) -> Table:
        """See `Task.read_file`."""
        table = self.columns.read(read_table(path), str(path), labelled=labelled)
        if labelled:
            self.check_file(table, path)
        return table

    def check_file(self, table: Table, path: Path) -> None:
        """Checks the labels of a file.

        Args:
            table: its rows.
            path: the file.

        Raises:
            UsageError: the model does not know them.
        """
        if strange := sorted(table.labels_used() - set(self.labels)):
            raise UsageError(
                f"{path}: expected labels of the model, {', '.join(self.labels)}; found {', '.join(strange[:5])}"
            )


def _warn_of_look_alikes(labels: tuple[str, ...]) -> None:
    """Warns of classes that are most likely one, written in two ways."""
    seen: dict[str, str] = {}
    for label in labels:
        other = seen.setdefault(" ".join(label.casefold().split()), label)
        if other != label:
            logger.warning("labels %r and %r differ in case or spaces alone, and are two classes", other, label)
            return


def _sorted(names: set[str]) -> tuple[str, ...]:
    """By their value where all are whole numbers."""
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(names))
