"""The official metrics of the tasks, computed by scikit-learn and SciPy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np


def _correlation(kind: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy import stats

    # The correlation with a constant is undefined; a model that always says the same knows nothing: 0.
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(getattr(stats, kind)(predictions, labels).statistic)


def compute_metrics(names: Sequence[str], predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compares predictions with labels.

    Args:
        names: of `accuracy`, `f1` (of class 1), `matthews_correlation`, `pearson`, `spearman`.
        predictions: classes, or numbers for a correlation `(examples,)`.
        labels: class indices or targets `(examples,)`.
    """
    from sklearn import metrics

    functions = {
        "accuracy": metrics.accuracy_score,
        "f1": metrics.f1_score,
        "matthews_correlation": metrics.matthews_corrcoef,
        "pearson": lambda target, prediction: _correlation("pearsonr", prediction, target),
        "spearman": lambda target, prediction: _correlation("spearmanr", prediction, target),
    }
    with warnings.catch_warnings():
        # They are of models that say one class, or nearly one number, of all examples: the metric is defined there too.
        warnings.simplefilter("ignore")
        values = {name: float(functions[name](labels, predictions)) for name in names}
    assert all(math.isfinite(value) for value in values.values())
    return values
