"""Tasks that ask for one class or number of a sentence or of a pair of sentences."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from ..training.data import EncodedExamples
from .base import Judgement, Task
from .metrics import compute_metrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sentences:
    """One split of a task.

    Attributes:
        texts: per example, the task's one or two sentences.
        labels: per example, an index into the task's `labels` (int), or the target of a regression (float).
    """

    texts: list[tuple[str, ...]]
    labels: list[int] | list[float]

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
        # All of it: the model may come from a task of another kind, whose loss would stay.
        names = self.labels or ("LABEL_0",)
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
        config.problem_type = "regression" if self.is_regression else "single_label_classification"

    @torch.no_grad()
    def match_head(self, model: PreTrainedModel, absent: set[str], labels: Mapping[int, str], seed: int) -> None:
        """See `Task.match_head`. The checkpoint's classes are put in the task's order by their names, case aside."""
        classifier: Any = model.get_submodule("classifier")
        config: Any = model.config
        own = [labels.get(index, "").casefold() for index in range(len(labels))]
        wanted = [config.id2label[index].casefold() for index in range(config.num_labels)]
        if absent & {"classifier.weight", "classifier.bias"}:
            why = "the checkpoint has none for as many labels"
        elif sorted(own) != sorted(wanted) or len(set(own)) < len(own):
            why = f"the checkpoint's labels ({', '.join(own)}) are not the task's ({', '.join(wanted)})"
        else:
            order = [own.index(label) for label in wanted]
            for parameter in (classifier.weight, classifier.bias):
                parameter.copy_(parameter[order])
            moved = order != sorted(order)
            logger.info("classifier: the checkpoint's%s", ", its labels put in the task's order" if moved else "")
            return
        # Not as transformers has made it: what that drew depends on what else the checkpoint lacked.
        torch.manual_seed(seed)
        nn.init.normal_(classifier.weight, std=config.initializer_range)
        nn.init.zeros_(classifier.bias)
        logger.info("classifier: new; %s", why)

    def encode(self, tokenizer: Any, examples: Sentences, max_length: int) -> EncodedExamples:
        """See `Task.encode`; of a pair, the longer sentence is cut first."""
        columns = [list(column) for column in zip(*examples.texts, strict=True)]
        encoding = tokenizer(*columns, truncation=True, max_length=max_length)
        dtype = torch.float32 if self.is_regression else torch.int64
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
