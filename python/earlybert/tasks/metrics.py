"""Metrics of classes, sets of labels and numbers, computed by scikit-learn and SciPy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np


class Kind(Enum):
    """What a metric compares."""

    #: An index for each example.
    CLASSES = auto()
    #: For each example 0 or 1 for every label.
    LABEL_SETS = auto()
    NUMBERS = auto()


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        function: computes it, given labels and predictions.
        kinds: of what these may be.
        is_error: whether less of it is better.
    """

    function: Callable[[np.ndarray, np.ndarray], float]
    kinds: tuple[Kind, ...] = (Kind.CLASSES,)
    is_error: bool = False


def _sklearn(name: str, **options: Any) -> Callable[[np.ndarray, np.ndarray], float]:
    def compute(labels: np.ndarray, predictions: np.ndarray) -> float:
        from sklearn import metrics  # which takes a second

        return getattr(metrics, name)(labels, predictions, **options)

    return compute


def _scipy(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    def compute(labels: np.ndarray, predictions: np.ndarray) -> float:
        from scipy import stats

        # The correlation with a constant is undefined; a model that always says the same knows nothing: 0.
        if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
            return 0.0
        return getattr(stats, name)(labels, predictions).statistic

    return compute


_CLASSES_OR_SETS = (Kind.CLASSES, Kind.LABEL_SETS)

#: By name. `f1` is that of class 1; those of all classes or labels are averaged over them (macro), weighted by their
#: size, or counted over all decisions together (micro). A label that nobody has and nobody is said to have counts 0.
#: `exact_match` is the share of the examples whose set of labels is right as a whole.
METRICS: dict[str, Metric] = {
    "accuracy": Metric(_sklearn("accuracy_score")),
    "balanced_accuracy": Metric(_sklearn("balanced_accuracy_score")),
    "f1": Metric(_sklearn("f1_score")),
    "f1_micro": Metric(_sklearn("f1_score", average="micro"), (Kind.LABEL_SETS,)),
    "f1_macro": Metric(_sklearn("f1_score", average="macro"), _CLASSES_OR_SETS),
    "f1_weighted": Metric(_sklearn("f1_score", average="weighted"), _CLASSES_OR_SETS),
    "precision_micro": Metric(_sklearn("precision_score", average="micro"), (Kind.LABEL_SETS,)),
    "precision_macro": Metric(_sklearn("precision_score", average="macro"), _CLASSES_OR_SETS),
    "recall_micro": Metric(_sklearn("recall_score", average="micro"), (Kind.LABEL_SETS,)),
    "recall_macro": Metric(_sklearn("recall_score", average="macro"), _CLASSES_OR_SETS),
    "exact_match": Metric(_sklearn("accuracy_score"), (Kind.LABEL_SETS,)),
    "matthews_correlation": Metric(_sklearn("matthews_corrcoef")),
    "pearson": Metric(_scipy("pearsonr"), (Kind.NUMBERS,)),
    "spearman": Metric(_scipy("spearmanr"), (Kind.NUMBERS,)),
    "mean_squared_error": Metric(_sklearn("mean_squared_error"), (Kind.NUMBERS,), is_error=True),
    "mean_absolute_error": Metric(_sklearn("mean_absolute_error"), (Kind.NUMBERS,), is_error=True),
}


#: The mean loss, which every evaluation has besides its metrics.
EVAL_LOSS = "eval_loss"


def less_is_better(name: str) -> bool:
    """Whether a metric is a loss or an error."""
    return name == EVAL_LOSS or (name in METRICS and METRICS[name].is_error)


def compute_metrics(names: Sequence[str], predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compares predictions with labels.

    Args:
        names: of `METRICS`.
        predictions: classes or numbers `(examples,)`, or sets of labels `(examples, labels)`, integers.
        labels: likewise.
    """
    with warnings.catch_warnings():
        # They are of models that say one class, or nearly one number, of all examples: the metric is defined there too.
        warnings.simplefilter("ignore")
        values = {name: float(METRICS[name].function(labels, predictions)) for name in names}
    assert all(math.isfinite(value) for value in values.values())
    return values
