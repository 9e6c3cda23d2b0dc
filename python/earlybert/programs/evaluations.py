"""How good a run's model is, while it trains and at the end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import nn

from ..errors import UsageError
from ..tasks import Judgement
from ..tasks.metrics import EVAL_LOSS, less_is_better
from ..training.best import BestModel
from ..training.data import EncodedExamples
from ..training.evaluation import predict
from .preparation import Prepared

logger = logging.getLogger(__name__)


class Evaluations:
    """Evaluates a run's model and remembers the results.

    Attributes:
        curve: the evaluations while training and that of its end, where there are any while training: `step` and
            `seconds` of search and training until then, the metrics and `eval_loss`.
    """

    def __init__(
        self, prepared: Prepared, pad_to: int | None, on_evaluation: Callable[[dict[str, float], int], None]
    ) -> None:
        """
        Args:
            prepared: the run.
            pad_to: tokens to pad a stock model's batches to; None for the longest of a batch.
            on_evaluation: called with the results of every evaluation of a model as it was trained, and its step.

        Raises:
            UsageError: there is no such metric to find the best model by.
        """
        self.curve: list[dict[str, Any]] = []
        self._latest: Judgement | None = None
        self._prepared = prepared
        self._args = prepared.args
        self._pad_to = pad_to
        self._on_evaluation = on_evaluation
        self._best = self._make_best() if prepared.args.picks_best else None

    def _make_best(self) -> BestModel:
        metric = self._args.metric_for_best_model or self._prepared.task.main_metric
        names = (*self._prepared.task.metric_names, EVAL_LOSS)
        known = {_metric_of(name, split): less_is_better(name) for split in self._prepared.data.evals for name in names}
        # Trainer takes every name with and without the prefix.
        spelled = next(
            (name for name in (metric, metric.removeprefix("eval_"), f"eval_{metric}") if name in known), None
        )
        if spelled is None:
            raise UsageError(f"--metric-for-best-model: expected one of {', '.join(known)}, found {metric}")
        patience = self._args.early_stopping_patience
        return BestModel(spelled, less_is_better=known[spelled], patience=patience)

    @property
    def are_past_the_best(self) -> bool:
        """Whether training is to end early."""
        return self._best is not None and self._best.is_past

    def best_record(self) -> dict[str, Any] | None:
        """The `best` of metrics.json: step and metric of the best model; None where models are not compared."""
        best = self._best
        return None if best is None else {"step": best.step, best.metric: best.value}

    def add(self, model: nn.Module, splits: Mapping[str, EncodedExamples], step: int, seconds: float) -> Judgement:
        """Evaluates a model in the middle of training.

        Args:
            model: on the run's device.
            splits: by name, what it is judged on.
            step: optimizer steps of training so far.
            seconds: of search and training so far.
        """
        judgement = self._latest = self._evaluate(model, splits)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in judgement.metrics.items())
        logger.info("step %d: %s", step, shown)
        self.curve.append({"step": step, "seconds": seconds, **judgement.metrics})
        self._on_evaluation(judgement.metrics, step)
        if self._best is not None:
            self._best.add(step, judgement.metrics, model)
        return judgement

    def last(self, model: nn.Module, splits: Mapping[str, EncodedExamples], step: int, seconds: float) -> Judgement:
        """Evaluates what the run ends with: the model as it was trained, or the best, whose weights it then has.

        Args:
            model, splits, step, seconds: as `add` takes them.
        """
        if self._args.eval_strategy == "no":
            judgement = self._evaluate(model, splits)
            self._on_evaluation(judgement.metrics, step)
            return judgement
        if not self.curve or self.curve[-1]["step"] != step:
            self.add(model, splits, step, seconds)
        if self._best is not None and self._args.load_best_model_at_end and self._best.step != step:
            logger.info("the best model is that of step %d", self._best.step)
            self._best.restore(model)
            self._latest = None
        return self._latest or self._evaluate(model, splits)  # of a run that was resumed here there is none

    def outputs(self, model: nn.Module, encoded: EncodedExamples) -> list[np.ndarray]:
        """What the task judges of a model on the run's device, for each of some examples; see `Task.outputs`."""
        return predict(
            model,
            encoded,
            self._prepared.task.outputs,
            batch_size=self._args.eval_batch_size,
            pad_to=self._pad_to,
            dtype=self._prepared.dtype,
            device=self._prepared.device,
        )

    def _evaluate(self, model: nn.Module, splits: Mapping[str, EncodedExamples]) -> Judgement:
        """The task's metrics and loss on every evaluation split, and by file what the model has said of the last.

        A metric is named as such on the first split, and `metric_<split>` on the others.
        """
        metrics: dict[str, float] = {}
        files: dict[str, Any] = {}
        task = self._prepared.task
        for split, encoded in splits.items():
            judgement = task.evaluate(self.outputs(model, encoded), encoded)
            metrics |= {_metric_of(name, split): value for name, value in judgement.metrics.items()}
            files = judgement.files
        return Judgement(metrics, files)

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs."""
        return {"curve": list(self.curve), "best": None if self._best is None else self._best.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state_dict` gave."""
        self.curve = list(state["curve"])
        if self._best is not None:
            self._best.load_state_dict(state["best"])


def _metric_of(name: str, split: str) -> str:
    return f"{name}_{split}" if split else name
