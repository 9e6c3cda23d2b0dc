"""Metrics of classes and numbers, computed by scikit-learn and SciPy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        function: computes it, given labels and predictions.
        of_numbers: whether these are numbers, and not classes.
        is_error: whether less of it is better.
    """

    function: Callable[[np.ndarray, np.ndarray], float]
    of_numbers: bool = False
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


#: By name. `f1` is that of class 1; those of all classes are averaged over classes (macro) or weighted by their size.
METRICS: dict[str, Metric] = {
    "accuracy": Metric(_sklearn("accuracy_score")),
    "balanced_accuracy": Metric(_sklearn("balanced_accuracy_score")),
    "f1": Metric(_sklearn("f1_score")),
    "f1_macro": Metric(_sklearn("f1_score", average="macro")),
    "f1_weighted": Metric(_sklearn("f1_score", average="weighted")),
    "precision_macro": Metric(_sklearn("precision_score", average="macro")),
    "recall_macro": Metric(_sklearn("recall_score", average="macro")),
    "matthews_correlation": Metric(_sklearn("matthews_corrcoef")),
    "pearson": Metric(_scipy("pearsonr"), of_numbers=True),
    "spearman": Metric(_scipy("spearmanr"), of_numbers=True),
    "mean_squared_error": Metric(_sklearn("mean_squared_error"), of_numbers=True, is_error=True),
    "mean_absolute_error": Metric(_sklearn("mean_absolute_error"), of_numbers=True, is_error=True),
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
        predictions: classes, or numbers `(examples,)`.
        labels: class indices or targets `(examples,)`.
    """
    with warnings.catch_warnings():
        # They are of models that say one class, or nearly one number, of all examples: the metric is defined there too.
        warnings.simplefilter("ignore")
        values = {name: float(METRICS[name].function(labels, predictions)) for name in names}
    assert all(math.isfinite(value) for value in values.values())
    return values
