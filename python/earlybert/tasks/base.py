"""What a task is: its data, the head that it needs, what the model is given, and how its outputs are judged."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from transformers import PreTrainedModel

from ..errors import UsageError
from ..training.data import EncodedExamples
from .metrics import EVAL_LOSS


class Examples(Protocol):
    """One split of a task, as its files have it."""

    def __len__(self) -> int: ...

    def first(self, count: int | None) -> Self:
        """The first `count` examples; all of them if `count` is None or larger."""


@dataclass(frozen=True)
class Source:
    """Where a task's examples are read from: the hub, where nothing is given.

    Attributes:
        data_dir: a folder with the files as they are distributed.
        train_file: the file of the training split, wherever it is.
        validation_file: the file of the evaluation split.
        dataset_name: a dataset of the hub, for tasks that have none of their own.
        dataset_config: its configuration.
    """

    data_dir: Path | None = None
    train_file: Path | None = None
    validation_file: Path | None = None
    dataset_name: str | None = None
    dataset_config: str | None = None

    def files(self) -> tuple[Path, Path] | None:
        """The two files, where they are named one by one; None where they are not.

        Raises:
            UsageError: only one is named, or a folder or a dataset is too.
        """
        if self.dataset_name is not None:
            raise UsageError("--dataset-name: the task has a dataset of its own; leave out --task, or this")
        if self.train_file is None and self.validation_file is None:
            return None
        if self.train_file is None or self.validation_file is None:
            raise UsageError("--train-file and --validation-file: expected both or neither")
        if self.data_dir is not None:
            raise UsageError("--data-dir names a folder with both files: leave out --train-file and --validation-file")
        return self.train_file, self.validation_file


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


@dataclass(frozen=True)
class Judgement:
    """How good a model's outputs are.

    Attributes:
        metrics: by name; shares are from 0 to 1.
        files: what the model has said, by the name of the JSON file that it is written to.
    """

    metrics: dict[str, float]
    files: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Everything that the programs need to know about a task, so that none of them names a kind of task.

    Attributes:
        name: what `--task` calls it.
        main_metric: the one that is shown when there is room for one.
        max_length: tokens that the model is given at once, if nothing else is said.
        counts_examples: whether the metrics are means over examples, and not over tokens of them.
    """

    name: str
    main_metric: str
    max_length: int = 128
    counts_examples: bool = True

    @property
    @abstractmethod
    def model_class(self) -> type[Any]:
        """The class of transformers whose `from_pretrained` reads a model with the head: an auto class."""

    @property
    @abstractmethod
    def metric_names(self) -> tuple[str, ...]:
        """The metrics that every judgement of `score` has."""

    def with_options(self, **options: Any) -> Self:
        """The task with what its own flags say.

        Args:
            options: by name; None where a flag was not given.

        Raises:
            UsageError: one was given that means nothing to the task.
        """
        for name, value in options.items():
            if value is not None:
                raise UsageError(f"--{name.replace('_', '-')} says nothing to task {self.name}")
        return self

    @abstractmethod
    def configure(self, config: Any) -> None:
        """Puts into a model's config what the head has to know: the labels and the kind of loss."""

    @abstractmethod
    def load(self, source: Source) -> TaskData:
        """Reads every split completely.

        Raises:
            UsageError: a file is absent or a row is not as the format says.
        """

    def fitted(self, data: TaskData) -> Self:
        """The task as its examples show it to be, where only they name its classes.

        Raises:
            UsageError: they do not fit together.
        """
        return self

    def of_model(self, config: Any) -> Self:
        """The task as a model that was trained on it knows it: its classes, where only the examples named them."""
        return self

    def read_file(self, path: Path, *, labelled: bool) -> Examples:
        """The examples of a single file in the task's format.

        Args:
            path: the file.
            labelled: whether it says what is right.

        Raises:
            UsageError: the file is not in the task's format, or the task reads none.
        """
        raise UsageError(f"task {self.name} reads no single file")

    def own_tests(self, source: Source) -> dict[str, Examples]:
        """The test splits that the task itself has, without labels, by names as in `TaskData.evals`.

        Args:
            source: where the other splits were read from.

        Raises:
            UsageError: it has none, or they are not there.
        """
        raise UsageError(f"--do-predict: task {self.name} has no test split of its own; expected --test-file with it")

    def answers(self, outputs: Sequence[np.ndarray], encoded: Any) -> list[dict[str, Any]]:
        """What a model says of each example, in words, the answer itself first.

        Args:
            outputs, encoded: as `score` takes them, but without labels.

        Raises:
            UsageError: the task asks for nothing that could be said of an example.
        """
        raise UsageError(f"task {self.name} has no answers to write")

    def spell(self, answer: Mapping[str, Any]) -> str:
        """One of `answers` as the task's own files spell it; a list as JSON does."""
        value = next(iter(answer.values()))
        return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)

    @abstractmethod
    def match_head(self, model: PreTrainedModel, absent: set[str], labels: Mapping[int, str], seed: int) -> None:
        """Makes the head of a model that was just read fit the task: the checkpoint's where it is of this task, or new.

        Args:
            model: of `model_class`.
            absent: its keys that the checkpoint has no weights for.
            labels: the names of the checkpoint's classes by index.
            seed: of new weights.
        """

    @abstractmethod
    def encode(self, tokenizer: Any, examples: Any, max_length: int) -> EncodedExamples:
        """What the model is given of a split, in sequences of at most `max_length` tokens.

        Args:
            tokenizer: the model's.
            examples: a split as `load` has read it.
            max_length: tokens.

        Raises:
            UsageError: the tokenizer or the length does not do for the task.
        """

    @abstractmethod
    def outputs(self, model: Any, batch: Mapping[str, Any], lengths: Sequence[int]) -> list[torch.Tensor]:
        """What of a model's output is judged, float32, one tensor per sequence of the batch.

        Args:
            model: of `model_class`.
            batch: padded or packed, with its targets.
            lengths: tokens of each sequence.
        """

    @abstractmethod
    def score(self, outputs: Sequence[np.ndarray], encoded: Any) -> Judgement:
        """Judges a model's outputs by the task's metrics.

        Args:
            outputs: float32, one array for every encoded example, as `outputs` gives them.
            encoded: the split, as `encode` gives it.

        Raises:
            FloatingPointError: an output is not finite.
        """

    @abstractmethod
    def loss(self, outputs: Sequence[np.ndarray], encoded: Any) -> float:
        """The mean of the loss that the model is trained by, computed in float64 from what `score` judges.

        Args:
            outputs, encoded: as `score` takes them.
        """

    def evaluate(self, outputs: Sequence[np.ndarray], encoded: Any) -> Judgement:
        """What `score` says and, as `eval_loss`, what `loss` does; arguments and errors are those of `score`."""
        judgement = self.score(outputs, encoded)
        return replace(judgement, metrics=judgement.metrics | {EVAL_LOSS: self.loss(outputs, encoded)})

    def check_finite(self, outputs: Sequence[np.ndarray]) -> None:
        """Raises FloatingPointError if a model's outputs are not finite."""
        if not all(np.isfinite(each).all() for each in outputs):
            raise FloatingPointError(f"task {self.name}: the model's outputs are not finite")
