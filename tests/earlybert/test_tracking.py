"""What experiment trackers are sent."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from earlybert import FinetuneArguments, environment, finetune
from earlybert.errors import UsageError
from earlybert.programs import tracking
from earlybert.run_directory import RunDirectory
from earlybert.training.loop import TrainingLoop

Make = Callable[..., FinetuneArguments]

RECIPE = {
    "eval_strategy": "steps", "eval_steps": 5, "logging_steps": 4, "checkpoint_steps": 4, "min_search_share": 1.0,
}  # fmt: skip
TIMES = ("tokens_per_second", "seconds_")


@pytest.fixture
def installed() -> None:
    for name in ("accelerate", "tensorboard"):
        pytest.importorskip(name)


def scalars(run: str) -> dict[str, dict[int, float]]:
    """What TensorBoard shows of a run: value by step, of each name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(RunDirectory(run).tensorboard), purge_orphaned_data=True).Reload()
    found = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    assert all(len({event.step for event in each}) == len(each) for each in found.values()), "none is there twice"
    return {name: {event.step: event.value for event in each} for name, each in found.items()}


def timeless(shown: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in shown.items() if not any(time in name for time in TIMES)}


@pytest.mark.usefixtures("installed")
def test_tensorboard_shows_what_metrics_json_says(arguments: Make) -> None:
    args = arguments(report_to=["tensorboard"], **RECIPE)
    found = finetune(args)
    shown = scalars(args.output_dir)
    searched = found["steps"]["search"]
    assert searched == 8
    for prefix, begin, log in (("search_", 0, found["search"]["log"]), ("", searched, found["train_log"])):
        for name in sorted({*log[0]} - {"step"}):
            expected = {begin + record["step"]: record[name] for record in log}
            assert shown[prefix + name] == pytest.approx(expected)
        assert all(speed > 0 for speed in shown[prefix + "tokens_per_second"].values())
    assert "search_gate_l1" in shown
    for name in ("accuracy", "loss"):
        key = "eval_" + name if name == "loss" else name
        assert shown["eval_" + name] == pytest.approx({searched + each["step"]: each[key] for each in found["curve"]})
    assert shown["final_accuracy"] == {20: pytest.approx(found["eval"]["accuracy"])}
    assert shown["seconds_total"] == {20: pytest.approx(found["seconds"]["total"])}
    assert shown["parameters_trained"] == {20: found["parameters"]["trained"]}
    (hyperparameters,) = RunDirectory(args.output_dir).tensorboard.glob("*/hparams.yml")
    assert "learning_rate: 0.005" in hyperparameters.read_text().splitlines()
    assert RunDirectory(args.output_dir).check_sums() is None


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("stop_at", ["search 6", "train 6", "train 12"])
def test_a_resumed_run_is_shown_as_the_uninterrupted_one(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: str
) -> None:
    from tensorboard.summary.writer import event_file_writer

    # Of files of one second and one process TensorBoard takes number 10 for an earlier one than number 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(100))
    whole, parts = (arguments(output_dir=str(tmp_path / n), report_to=["tensorboard"], **RECIPE) for n in ("a", "b"))
    finetune(whole)
    step = TrainingLoop._train_step
    name, number = stop_at.split()

    def stopping(loop: TrainingLoop, batches: list[list[int]]) -> None:
        step(loop, batches)
        if loop.settings.name == name and loop.step == int(number) - 1:
            raise RuntimeError("the machine went down")  # which leaves what was logged since the checkpoint

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_train_step", stopping)
        with pytest.raises(RuntimeError, match="went down"):
            finetune(parts)
    finetune(arguments(output_dir=parts.output_dir, report_to=["tensorboard"], resume=True, **RECIPE))
    expected = scalars(whole.output_dir)
    assert {"search_loss", "loss", "learning_rate", "eval_loss", "final_accuracy"} <= set(expected)
    assert timeless(scalars(parts.output_dir)) == timeless(expected)
    assert len(list(RunDirectory(parts.output_dir).tensorboard.glob("*/hparams.yml"))) == 1
    again = arguments(output_dir=parts.output_dir, method="dense", overwrite_output_dir=True)
    finetune(again)
    assert not RunDirectory(parts.output_dir).tensorboard.exists()


@pytest.mark.parametrize(
    ("report_to", "message"),
    [
        (["wandb"], "--report-to wandb: not installed; pip install accelerate wandb"),
        (["mlflow", "tensorboard"], "--report-to mlflow: not installed; pip install accelerate mlflow tensorboard"),
        (["tensorbored"], "--report-to: expected none, or of tensorboard, wandb, mlflow; found tensorbored"),
        (["none", "wandb"], "--report-to: expected none, or of .*; found none wandb"),
    ],
)
def test_a_tracker_that_is_not_there_is_said_before_anything_is_written(
    arguments: Make, monkeypatch: pytest.MonkeyPatch, report_to: list[str], message: str
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate.tracking", None)
    args = arguments(report_to=report_to)
    with pytest.raises(UsageError, match=message):
        finetune(args)
    assert not Path(args.output_dir).exists()


def test_a_tracker_that_cannot_be_opened_is_said(arguments: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError("no server\nand much more")

    monkeypatch.setattr(tracking, "check_trackers", lambda names: None)
    monkeypatch.setattr(tracking.Tracking, "_open", refuse)
    monkeypatch.setattr(TrainingLoop, "_train_step", lambda *args: pytest.fail("it trained"))
    monkeypatch.setattr("earlybert.programs.preparation.check_trackers", lambda names: None)
    with pytest.raises(UsageError, match="--report-to mlflow: no server$"):
        finetune(arguments(report_to=["mlflow"]))


def test_a_result_has_its_date_and_commit(arguments: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("earlybert.programs.run.commit", lambda: "0123abc-dirty")
    args = arguments(method="dense", max_steps=1)
    finetune(args)
    found = json.loads((Path(args.output_dir) / "metrics.json").read_text())
    written = datetime.fromisoformat(found["date"])
    assert written.utcoffset() == timedelta(0)
    assert abs(datetime.now(written.tzinfo) - written) < timedelta(minutes=10)
    assert found["commit"] == "0123abc-dirty"


def test_only_a_checkout_of_this_library_has_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package may lie in somebody else's checkout."""
    (tmp_path / ".git").mkdir()
    folder = tmp_path / ".venv" / "lib" / "python3" / "site-packages" / "earlybert"
    monkeypatch.setattr(environment, "__file__", str(folder / "environment.py"))
    assert environment.commit() is None


@pytest.mark.skipif(not (Path(environment.__file__).parents[2] / ".git").exists(), reason="this is no checkout of git")
def test_a_checkout_has_a_commit() -> None:
    assert environment.commit()
