"""What a task is: sentences in, a label or a number out, and the metrics that judge it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Examples:
    """One split of a task.

    Attributes:
        texts: per example, the task's one or two sentences.
        labels: per example, an index into `Task.labels` (int), or the target of a regression (float).
    """

    texts: list[tuple[str, ...]]
    labels: list[int] | list[float]

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, count: int | None) -> Examples:
        """The first `count` examples; all of them if `count` is None or larger."""
        return self if count is None else Examples(self.texts[:count], self.labels[:count])


@dataclass(frozen=True)
class TaskData:
    """All the examples a run needs.

    Attributes:
        train: the training split.
        evals: the evaluation splits by name. A single split is named ""; MNLI's are "" (matched) and
            "mismatched". A split's name is appended to the names of its metrics.
    """

    train: Examples
    evals: dict[str, Examples]


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A sentence or sentence-pair task.

    Attributes:
        name: what `--task` calls it.
        sentences: 1 or 2 sentences per example.
        labels: names of the classes in the order of their indices; empty for a regression.
        metrics: names of the official metrics (see `metrics.compute_metrics`).
        main_metric: the one that is shown when there is room for one.
    """

    name: str
    sentences: int
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    main_metric: str

    @property
    def is_regression(self) -> bool:
        """Whether the task asks for a number and not for a class."""
        return not self.labels

    @property
    def num_labels(self) -> int:
        """Outputs of the classifier: one per class, one for a regression."""
        return len(self.labels) or 1

    @abstractmethod
    def load(self, data_dir: Path | None) -> TaskData:
        """Reads every split completely.

        Args:
            data_dir: folder with the distribution's files; None for the task's other source.

        Raises:
            UsageError: a file is absent or a row is not as the format says.
        """
