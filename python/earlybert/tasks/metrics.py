"""The official metrics of the tasks, computed by scikit-learn and SciPy."""

from __future__ import annotations

import math
import warnings

import numpy as np

from .base import Task


def _correlation(kind: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy import stats

    # The correlation with a constant is undefined; a model that always says the same knows nothing: 0.
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(getattr(stats, kind)(predictions, labels).statistic)


def compute_metrics(task: Task, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Judges a model's outputs by the task's metrics.

    Args:
        task: the task; its `metrics` name what is computed.
        outputs: logits `(examples, classes)`; for a regression `(examples, 1)`.
        labels: class indices or targets `(examples,)`.

    Raises:
        FloatingPointError: an output is not finite.
    """
    from sklearn import metrics

    if not np.isfinite(outputs).all():
        raise FloatingPointError(f"task {task.name}: the model's outputs are not finite")
    predictions = outputs[:, 0].astype(np.float64) if task.is_regression else outputs.argmax(axis=1)
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
        values = {name: float(functions[name](labels, predictions)) for name in task.metrics}
    assert all(math.isfinite(value) for value in values.values())
    return values
