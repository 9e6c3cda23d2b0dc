"""Experiment trackers: TensorBoard, Weights & Biases and MLflow, by the integrations of accelerate."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from .. import processes
from ..errors import UsageError
from ..loading import first_line
from ..run_directory import RunDirectory

#: Where runs are filed, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME say otherwise.
PROJECT = "earlybert"


def check_trackers(names: Sequence[str]) -> None:
    """Raises UsageError unless all of these trackers are installed."""
    if not names:
        return
    available: list[str] = []
    try:
        from accelerate.tracking import get_available_trackers
    except ImportError:
        pass
    else:
        available = [str(name) for name in get_available_trackers()]
    if absent := [name for name in names if name not in available]:
        raise UsageError(f"--report-to {absent[0]}: not installed; pip install accelerate {' '.join(absent)}")


class Tracking:
    """Sends what is found out about a run to trackers, where a run that is resumed goes on.

    Steps are counted through search and training, so that they never fall.
    """

    def __init__(self, names: Sequence[str], directory: RunDirectory) -> None:
        """
        Args:
            names: of trackers that `check_trackers` has let pass. Of several processes the first alone has them.
            directory: the run's. TensorBoard's files are written there.
        """
        self._names = tuple(names) if processes.rank() == 0 else ()
        self._directory = directory
        self._trackers: dict[str, Any] = {}
        #: What the trackers know the run by.
        self._ids: dict[str, str] = {}

    @contextmanager
    def running(self, arguments: Mapping[str, Any], state: Mapping[str, Any] | None) -> Iterator[None]:
        """Opens the trackers, and closes them at the end.

        Args:
            arguments: of the run: its hyperparameters.
            state: what `state_dict` gave, of a run that is continued; what was logged of later steps is logged anew.

        Raises:
            UsageError: a tracker cannot be opened.
        """
        step, ids = (0, {}) if state is None else (state["step"], state["ids"])
        try:
            with processes.together():
                for name in self._names:
                    known = ids.get(name)
                    try:
                        self._trackers[name], self._ids[name] = self._open(name, known, step)
                        if known is None:
                            self._trackers[name].store_init_configuration(_simple(arguments))
                    except Exception as error:  # each has its own, of no account, login or server
                        raise UsageError(f"--report-to {name}: {first_line(error)}") from error
            yield
        finally:
            for tracker in self._trackers.values():
                tracker.finish()

    def log_record(self, record: Mapping[str, Any], *, begin: int = 0, prefix: str = "") -> None:
        """Logs a record of `TrainingLoop.run`.

        Args:
            record: with its `step`.
            begin: optimizer steps of search and training before the loop's first.
            prefix: of the names.
        """
        found = {f"{prefix}{name}": value for name, value in record.items() if name != "step"}
        self._log(found, begin + record["step"])

    def log_evaluation(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs metrics under the names that transformers' Trainer gives them: `eval_accuracy`."""
        self._log({f"eval_{name.removeprefix('eval_')}": value for name, value in metrics.items()}, step)

    def log_results(self, metrics: Mapping[str, Any]) -> None:
        """Logs the numbers that a run ends with, which are those of metrics.json."""
        groups = {"final": metrics["eval"], "seconds": metrics["seconds"], "parameters": metrics["parameters"]}
        found = {f"{group}_{name}": value for group, values in groups.items() for name, value in values.items()}
        self._log(found, sum(metrics["steps"].values()))

    def state_dict(self, step: int) -> dict[str, Any]:
        """All that `running` needs to continue after this optimizer step of search and training."""
        return {"step": step, "ids": dict(self._ids)}

    def _log(self, values: dict[str, float], step: int) -> None:
        for tracker in self._trackers.values():
            tracker.log(values, step=step)

    def _open(self, name: str, known: str | None, step: int) -> tuple[Any, str]:
        """A tracker, and what it knows the run by, which `known` is where it is continued."""
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # asked by trackers whether theirs is the main process
        run_name = self._directory.path.resolve().name
        make = LOGGER_TYPE_TO_CLASS[name]
        if name == "tensorboard":
            folder = self._directory.tensorboard
            tracker = make(folder.name, str(folder.parent), purge_step=step + 1)
        elif name == "wandb":
            project = os.environ.get("WANDB_PROJECT", PROJECT)
            tracker = make(project, id=known or uuid.uuid4().hex, resume="allow", name=run_name)
        else:
            tracker = make(PROJECT, run_id=known, run_name=None if known else run_name)
        tracker.start()
        if name == "tensorboard":
            return tracker, run_name
        return tracker, tracker.tracker.id if name == "wandb" else tracker.tracker.info.run_id


def _simple(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as all trackers take them."""
    return {
        name: value if isinstance(value, (bool, int, float, str)) else str(value) for name, value in arguments.items()
    }
