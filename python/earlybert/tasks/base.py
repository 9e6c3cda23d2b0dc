"""What a task is: its data, the head that it needs, what the model is given, and how its outputs are judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from torch import nn

from ..training.data import EncodedExamples


class Examples(Protocol):
    """One split of a task, as its files have it."""

    def __len__(self) -> int: ...

    def first(self, count: int | None) -> Self:
        """The first `count` examples; all of them if `count` is None or larger."""


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
    """Everything that the programs need to know about a task, so that none of them names a kind of task.

    Attributes:
        name: what `--task` calls it.
        main_metric: the one that is shown when there is room for one.
    """

    name: str
    main_metric: str

    @property
    @abstractmethod
    def model_class(self) -> type:
        """The class of transformers whose `from_pretrained` reads a model with the head: an auto class."""

    @abstractmethod
    def configure(self, config: Any) -> None:
        """Puts into a model's config what the head has to know: the labels and the kind of loss."""

    @abstractmethod
    def load(self, data_dir: Path | None) -> TaskData:
        """Reads every split completely.

        Args:
            data_dir: folder with the distribution's files; None for the task's other source.

        Raises:
            UsageError: a file is absent or a row is not as the format says.
        """

    @abstractmethod
    def match_head(self, model: nn.Module, absent: set[str], labels: Mapping[int, str], seed: int) -> None:
        """Makes the head of a model that was just read fit the task: the checkpoint's where it is of this task, or new.

        Args:
            model: of `model_class`.
            absent: its keys that the checkpoint has no weights for.
            labels: the names of the checkpoint's classes by index.
            seed: of new weights.
        """

    @abstractmethod
    def encode(self, tokenizer: Any, examples: Examples, max_length: int) -> EncodedExamples:
        """What the model is given of a split, in sequences of at most `max_length` tokens."""

    @abstractmethod
    def score(self, outputs: np.ndarray, encoded: EncodedExamples) -> dict[str, float]:
        """Judges a model's outputs by the task's metrics.

        Args:
            outputs: the logits, `(examples, ...)`.
            encoded: the split.

        Raises:
            FloatingPointError: an output is not finite.
        """
