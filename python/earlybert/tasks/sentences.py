"""Tasks that ask for one class or number of a sentence or of a pair of sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from ..training.data import EncodedExamples
from .base import Judgement, Task
from .classifier import match_classifier, set_classes
from .metrics import compute_metrics


@dataclass(frozen=True)
class Sentences:
    """One split of a task.

    Attributes:
        texts: per example, the task's one or two sentences.
        labels: per example, an index into the task's `labels` (int), or the target of a regression (float), or for each
            of the task's `labels` whether the example has it (1.0 or 0.0).
    """

    texts: list[tuple[str, ...]]
    labels: list[int] | list[float] | list[list[float]]

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, count: int | None) -> Sentences:
        """See `Examples.first`."""
        return self if count is None else Sentences(self.texts[:count], self.labels[:count])


@dataclass(frozen=True, kw_only=True)
class SentenceTask(Task):
    """A sentence or sentence-pair task.

    Attributes:
        sentences: 1 or 2 sentences per example.
        labels: names of the classes in the order of their indices; empty for a regression.
        metrics: names of the official metrics (see `metrics.compute_metrics`).
    """

    sentences: int
    labels: tuple[str, ...]
    metrics: tuple[str, ...]

    @property
    def model_class(self) -> type[Any]:
        """See `Task.model_class`."""
        return AutoModelForSequenceClassification

    @property
    def metric_names(self) -> tuple[str, ...]:
        """See `Task.metric_names`."""
        return self.metrics

    @property
    def is_regression(self) -> bool:
        """Whether the task asks for a number and not for a class."""
        return not self.labels

    def configure(self, config: Any) -> None:
        """See `Task.configure`."""
        set_classes(config, self.labels or ("LABEL_0",), self.problem_type)

    @property
    def problem_type(self) -> str:
        """What transformers calls the kind of loss."""
        return "regression" if self.is_regression else "single_label_classification"

    def match_head(self, model: PreTrainedModel, absent: set[str], labels: Mapping[int, str], seed: int) -> None:
        """See `Task.match_head` and `match_classifier`."""
        match_classifier(model, absent, labels, seed)

    def encode(self, tokenizer: Any, examples: Sentences, max_length: int) -> EncodedExamples:
        """See `Task.encode`; of a pair, the longer sentence is cut first."""
        columns = [list(column) for column in zip(*examples.texts, strict=True)]
        encoding = tokenizer(*columns, truncation=True, max_length=max_length)
        dtype = torch.int64 if self.problem_type == "single_label_classification" else torch.float32
        targets = {"labels": torch.tensor(examples.labels, dtype=dtype)}
        return EncodedExamples.from_encoding(tokenizer, encoding, targets)

    def outputs(self, model: Any, batch: Mapping[str, Any], lengths: Sequence[int]) -> list[torch.Tensor]:
        """See `Task.outputs`: the logits, `(labels,)`."""
        return list(model(**batch).logits.float())

    def answers(self, outputs: Sequence[np.ndarray], encoded: EncodedExamples) -> list[dict[str, Any]]:
        """See `Task.answers`: `label` and its probability `score`, or `prediction`, a number."""
        self.check_finite(outputs)
        logits = torch.from_numpy(np.stack(outputs)).double()
        if self.is_regression:
            return [{"prediction": value} for value in logits[:, 0].tolist()]
        scores, classes = logits.softmax(dim=1).max(dim=1)
        return [
            {"label": self.labels[index], "score": score}
            for index, score in zip(classes.tolist(), scores.tolist(), strict=True)
        ]

    def score(self, outputs: Sequence[np.ndarray], encoded: EncodedExamples) -> Judgement:
        """See `Task.score`."""
        self.check_finite(outputs)
        logits = np.stack(outputs)
        predictions = logits[:, 0].astype(np.float64) if self.is_regression else logits.argmax(axis=1)
        return Judgement(compute_metrics(self.metrics, predictions, encoded.targets["labels"].numpy()))

    def loss(self, outputs: Sequence[np.ndarray], encoded: EncodedExamples) -> float:
        """See `Task.loss`: cross-entropy, or the mean squared error."""
        logits, labels = torch.from_numpy(np.stack(outputs)).double(), encoded.targets["labels"]
        if self.is_regression:
            return functional.mse_loss(logits[:, 0], labels.double()).item()
        return functional.cross_entropy(logits, labels).item()
