"""Evaluations while training, the best model and early stopping."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from earlybert import FinetuneArguments, finetune
from earlybert.errors import Interrupted, UsageError
from earlybert.programs import evaluations
from earlybert.tasks import Judgement, SentenceTask
from earlybert.training.best import BestModel
from earlybert.training.loop import TrainingLoop

Make = Callable[..., FinetuneArguments]


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the evaluations of a run say from now on, one after the other."""
    values: list[float] = []
    monkeypatch.setattr(SentenceTask, "score", lambda *args: Judgement({"accuracy": values.pop(0)}))
    return values


def weights(run: str) -> dict[str, torch.Tensor]:
    return load_file(Path(run) / "model" / "model.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("method", ["dense", "earlybert"])
def test_evaluating_while_training_changes_nothing_but_the_curve(arguments: Make, tmp_path: Path, method: str) -> None:
    plain, watched = (str(tmp_path / name) for name in ("plain", "watched"))
    without = finetune(arguments(output_dir=plain, method=method))
    found = finetune(arguments(output_dir=watched, method=method, eval_strategy="steps", eval_steps=5))
    assert same(weights(plain), weights(watched))
    assert without["curve"] == [] and without["best"] is None
    assert [entry["step"] for entry in found["curve"]] == [5, 10, 12]
    assert found["curve"][-1]["accuracy"] == found["eval"]["accuracy"] == without["eval"]["accuracy"]
    seconds = [entry["seconds"] for entry in found["curve"]]
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(found["seconds"]["total"])
    assert (Path(watched) / "curve.png").exists() and not (Path(plain) / "curve.png").exists()


def test_each_epoch_is_evaluated(arguments: Make) -> None:
    found = finetune(arguments(method="dense", max_steps=None, num_train_epochs=2.5, eval_strategy="epoch"))
    per_epoch = -(-found["examples"]["train"] // 8)
    assert [entry["step"] for entry in found["curve"]] == [per_epoch, 2 * per_epoch, found["steps"]["train"]]


def test_the_best_model_is_kept(arguments: Make, tmp_path: Path, scores: list[float]) -> None:
    scores += [0.5]
    finetune(arguments(output_dir=str(tmp_path / "last"), method="dense", max_steps=8, warmup_ratio=0.0))
    scores += [0.25, 0.75, 0.5, 0.75, 0.75]
    args = arguments(
        output_dir=str(tmp_path / "best"), method="dense", eval_strategy="steps", eval_steps=4,
        load_best_model_at_end=True,
    )  # fmt: skip
    seen = {}
    add = BestModel.add

    def note(best: BestModel, step: int, results: dict[str, float], model: nn.Module) -> None:
        seen[step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        add(best, step, results, model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BestModel, "add", note)
        found = finetune(args)
    assert found["best"] == {"step": 8, "accuracy": 0.75}
    assert found["eval"]["accuracy"] == 0.75
    assert [entry["accuracy"] for entry in found["curve"]] == [0.25, 0.75, 0.5]
    kept = weights(args.output_dir)
    assert all(torch.equal(kept[name], seen[8][name]) for name in kept)
    assert not all(torch.equal(kept[name], seen[12][name]) for name in kept)


def test_the_last_model_is_kept_where_nobody_asks_for_the_best(arguments: Make, scores: list[float]) -> None:
    scores += [0.75, 0.5, 0.5]
    found = finetune(arguments(method="dense", eval_strategy="steps", eval_steps=6, early_stopping_patience=3))
    assert found["best"] == {"step": 6, "accuracy": 0.75}
    assert found["eval"]["accuracy"] == 0.5


def test_training_ends_when_nothing_better_comes(arguments: Make, scores: list[float]) -> None:
    scores += [0.5, 0.4, 0.5, 0.5]
    found = finetune(arguments(method="dense", eval_strategy="steps", eval_steps=2, early_stopping_patience=2))
    assert [entry["step"] for entry in found["curve"]] == [2, 4, 6]
    assert found["steps"]["train"] == 6
    assert found["train_log"][-1]["step"] == 6
    assert found["eval"]["accuracy"] == 0.5


@pytest.mark.parametrize("stop_at", [3, 5, 9])
def test_a_resumed_run_knows_its_curve_and_its_best_model(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    recipe = {
        "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "early_stopping_patience": 9,
        "checkpoint_steps": 3, "learning_rate": 2e-2,
    }  # fmt: skip
    whole = finetune(arguments(output_dir=str(tmp_path / "whole"), **recipe))
    args = arguments(output_dir=str(tmp_path / "resumed"), **recipe)
    step = TrainingLoop._train_step

    def stopping(loop: TrainingLoop, batches: list[list[int]]) -> None:
        step(loop, batches)
        if loop.settings.name == "train" and loop.step == stop_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_train_step", stopping)
        with pytest.raises((KeyboardInterrupt, Interrupted)):
            finetune(args)
    resumed = finetune(arguments(output_dir=args.output_dir, resume=True, **recipe))
    assert same(weights(str(tmp_path / "whole")), weights(args.output_dir))
    strip = [{name: value for name, value in entry.items() if name != "seconds"} for entry in whole["curve"]]
    assert [{n: v for n, v in entry.items() if n != "seconds"} for entry in resumed["curve"]] == strip
    assert resumed["best"] == whole["best"]
    assert resumed["eval"] == whole["eval"]


def test_a_run_killed_after_it_stopped_early_is_not_trained_on(
    arguments: Make, monkeypatch: pytest.MonkeyPatch, scores: list[float]
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    recipe = {"method": "dense", "eval_strategy": "steps", "eval_steps": 2, "early_stopping_patience": 1}
    scores += [0.5, 0.5]
    with monkeypatch.context() as patch:
        patch.setattr(evaluations.Evaluations, "last", interrupt)
        with pytest.raises(KeyboardInterrupt):
            finetune(arguments(**recipe))
    scores += [0.5]
    monkeypatch.setattr(TrainingLoop, "_train_step", lambda *args: pytest.fail("it trained on"))
    assert finetune(arguments(resume=True, **recipe))["steps"]["train"] == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_strategy": "often"}, "--eval-strategy: expected one of no, steps, epoch, found often"),
        ({"eval_strategy": "steps", "eval_steps": 0}, "--eval-steps: expected at least 1"),
        ({"load_best_model_at_end": True}, "--load-best-model-at-end: expected --eval-strategy"),
        ({"early_stopping_patience": 2}, "--early-stopping-patience: expected --eval-strategy"),
        ({"eval_strategy": "epoch", "early_stopping_patience": 0}, "--early-stopping-patience: expected at least 1"),
        ({"eval_strategy": "epoch", "metric_for_best_model": "f1"}, "--metric-for-best-model: expected --load-best"),
        (
            {"eval_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "f1"},
            "--metric-for-best-model: expected one of accuracy, eval_loss, found f1",
        ),
    ],
)
def test_wrong_wishes_are_refused_before_a_model_is_loaded(
    arguments: Make, no_model_is_loaded: None, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        finetune(arguments(**changes))


def test_less_is_better_of_losses_and_errors() -> None:
    model = nn.Linear(1, 1, bias=False)
    best = BestModel("eval_loss", less_is_better=True, patience=2)
    for step, loss in enumerate((3.0, 2.0, 2.5, 2.0), start=1):
        model.weight.data.fill_(step)
        best.add(step, {"eval_loss": loss}, model)
    assert (best.step, best.value, best.is_past) == (2, 2.0, True)
    copy = BestModel("eval_loss", less_is_better=True, patience=2)
    copy.load_state_dict(best.state_dict())
    copy.restore(model)
    assert model.weight.item() == 2.0
    assert copy.is_past
    assert all(map(evaluations.less_is_better, ("eval_loss", "mean_squared_error")))
    assert not evaluations.less_is_better("f1")
