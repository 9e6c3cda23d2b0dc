from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from earlybert import FinetuneArguments
from earlybert.errors import UsageError
from earlybert.files import read_json
from earlybert.programs import finetune as finetuning
from earlybert.programs.compare import compare, summarize
from earlybert.programs.plots import curve_figure
from earlybert.programs.run import Run
from earlybert.run_directory import RunDirectory
from tests.helpers.tables import write_table

Make = Callable[..., FinetuneArguments]


def test_runs_all_variants_seed_by_seed_and_skips_what_is_finished(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = arguments(output_dir=str(tmp_path), max_steps=2, search_steps=2)
    variants = [("dense", "off"), ("dense", "auto"), ("earlybert", "auto"), ("random", "auto")]
    order = []
    finetune = finetuning.finetune
    monkeypatch.setattr(finetuning, "finetune", lambda args: order.append(Path(args.output_dir).name) or finetune(args))
    first = compare(template, variants[:2], [1, 2])
    assert order == ["dense-off-seed1", "dense-auto-seed1", "dense-off-seed2", "dense-auto-seed2"]
    assert json.loads((tmp_path / "comparison.json").read_text()) == first

    monkeypatch.setattr(Run, "execute", spy := Spy(Run.execute))
    comparison = compare(template, variants, [1, 2])
    assert spy.calls == 4, "the dense runs are not repeated"
    assert [(row["method"], row["kernels"]) for row in comparison["rows"]] == variants
    assert comparison["rows"][0] == first["rows"][0]
    assert (tmp_path / "comparison.md").read_text() == comparison["markdown"]
    assert not (tmp_path / "comparison.png").exists(), "nothing was evaluated while it trained"
    for name in ("dense-off-seed1", "random-auto-seed2"):
        assert (tmp_path / name / "metrics.json").exists()


@pytest.mark.usefixtures("pictures")
def test_curves_are_drawn_into_one_picture(arguments: Make, tmp_path: Path) -> None:
    template = arguments(output_dir=str(tmp_path), max_steps=2, search_steps=2, eval_strategy="steps", eval_steps=1)
    compare(template, [("dense", "auto"), ("random", "auto")], [1])
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    runs = {name: read_json(tmp_path / name / "metrics.json") for name in ("dense-auto-seed1", "random-auto-seed1")}
    figure = curve_figure({name: run["curve"] for name, run in runs.items()}, "accuracy")
    assert [line.get_label() for line in figure.axes[0].lines] == list(runs)
    for line, run in zip(figure.axes[0].lines, runs.values(), strict=True):
        assert line.get_xydata().tolist() == [[entry["step"], entry["eval_loss"]] for entry in run["curve"]]


class Spy:
    """Counts the calls of a method."""

    def __init__(self, function: Callable) -> None:
        self.calls = 0
        self.function = function

    def __get__(self, instance: Any, owner: type) -> Callable:
        def call(*args: Any) -> Any:
            self.calls += 1
            return self.function(instance, *args)

        return call


def test_dense_short_is_dense_for_a_tickets_epochs(arguments: Make, tmp_path: Path) -> None:
    template = arguments(output_dir=str(tmp_path), max_steps=None, max_train_examples=16)
    compare(template, [("dense", "auto"), ("dense-short", "auto")], [1])
    steps = [
        json.loads((tmp_path / f"{method}-auto-seed1" / "metrics.json").read_text())["steps"]["train"]
        for method in ("dense", "dense-short")
    ]
    assert steps == [6, 4]


def test_everything_is_checked_before_the_first_run(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuning, "finetune", lambda args: pytest.fail("a run began"))
    template = arguments(output_dir=str(tmp_path))
    with pytest.raises(UsageError, match="dense-short would be dense"):
        compare(template, [("dense", "auto"), ("dense-short", "auto")], [1])
    with pytest.raises(UsageError, match="--padding none"):
        compare(arguments(output_dir=str(tmp_path), padding="none"), [("dense", "auto"), ("dense", "off")], [1])
    with pytest.raises(UsageError, match="--methods: expected one of dense, dense-short, earlybert"):
        compare(template, [("magic", "auto")], [1])
    with pytest.raises(UsageError, match="--kernels: expected one of auto, off, found fast"):
        compare(template, [("dense", "fast")], [1])
    with pytest.raises(UsageError, match="at least one"):
        compare(template, [("dense", "auto")], [])
    with pytest.raises(UsageError, match="exclude each other"):
        compare(arguments(resume=True, overwrite_output_dir=True), [("dense", "auto")], [1])
    run = tmp_path / "dense-auto-seed2"
    run.mkdir()
    (run / "arguments.json").write_text(json.dumps({"model": "m", "task": "sst2", "method": "dense"}))
    with pytest.raises(UsageError, match="can only be continued with the arguments"):
        compare(template, [("dense", "auto")], [1, 2])


@pytest.mark.parametrize(
    ("what", "key", "other"),
    [("versions", "torch", "1.0"), ("machine", "threads", 99), ("backend", "attention", "magic")],
)
def test_finished_runs_of_another_kind_are_not_compared(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, key: str, other: Any
) -> None:
    template = arguments(output_dir=str(tmp_path), max_steps=1, search_steps=1)
    compare(template, [("dense", "auto")], [1])
    path = tmp_path / "dense-auto-seed1" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics[what][key] = other
    RunDirectory(path.parent).finish(metrics)
    monkeypatch.setattr(Run, "execute", lambda run: pytest.fail("a run began"))
    with pytest.raises(UsageError, match=rf"run dense-auto-seed1 cannot be compared: the {what} .* {key} {other};"):
        compare(template, [("dense", "auto"), ("random", "auto")], [1])
    # Alone it is still a result.
    assert compare(template, [("dense", "auto")], [1])["rows"][0]["seeds"] == [1]


def test_finished_runs_on_another_file_are_not_taken_for_those_on_this_one(arguments: Make, tmp_path: Path) -> None:
    file = write_table(tmp_path / "t.csv", {"text": ["good film", "bad film"] * 10, "label": ["a", "b"] * 10})
    template = arguments(output_dir=str(tmp_path / "c"), task="classification", data_dir=None, train_file=str(file))
    compare(template, [("dense", "off")], [1])
    before = file.read_bytes()
    file.write_bytes(before.replace(b"good", b"fine"))
    with pytest.raises(UsageError, match="--train-file .*t.csv is not as the finished run in .* has read it"):
        compare(template, [("dense", "off")], [1])
    file.write_bytes(before)
    compare(template, [("dense", "off")], [1])


def test_finished_runs_are_checked_before_the_first_one_begins(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = arguments(output_dir=str(tmp_path), max_steps=1, search_steps=1)
    compare(template, [("dense", "auto")], [2])
    weights = tmp_path / "dense-auto-seed2" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    monkeypatch.setattr(Run, "execute", lambda run: pytest.fail("a run began"))
    with pytest.raises(UsageError, match=r"model.safetensors is not as the run wrote it"):
        compare(template, [("dense", "auto")], [1, 2])


def test_the_table_says_what_the_runs_warned_of() -> None:
    diverged = result(0.5, 1) | {"warnings": ["train: the loss ended at 9"]}
    comparison = summarize({("dense", "auto"): {1: result(0.8, 1), 2: diverged}})
    assert comparison["warnings"] == ["dense-auto-seed2: train: the loss ended at 9"]
    assert comparison["markdown"].endswith("\nWarnings:\n\n- dense-auto-seed2: train: the loss ended at 9\n")
    assert "Warnings" not in summarize({("dense", "auto"): {1: result(0.8, 1)}})["markdown"]


def test_the_table_refuses_runs_of_another_kind() -> None:
    fast, slow = result(0.8, 1), result(0.8, 1)
    fast["backend"], slow["backend"] = {"attention": "cpu"}, {"attention": "reference"}
    summarize({("dense", "auto"): {1: fast}, ("dense", "off"): {1: slow}})
    with pytest.raises(UsageError, match="run random-auto-seed1 and run dense-auto-seed1 cannot be compared"):
        summarize({("dense", "auto"): {1: fast}, ("random", "auto"): {1: slow}})


def result(quality: float, total: float) -> dict[str, Any]:
    return {
        "eval": {"accuracy": quality},
        "main_metric": "accuracy",
        "seconds": {"search": total / 4, "train": total * 3 / 4, "total": total},
        "parameters": {"dense": 100, "trained": 80},
        "task": "sst2",
        "model": "m",
        "machine": {"cpu": "c", "threads": 2},
        "versions": {"torch": "t"},
        "backend": {},
        "examples": {"train": 900, "eval": {"dev": 400, "mismatched": 100}},
    }


def test_the_arithmetic_of_the_table() -> None:
    comparison = summarize(
        {
            ("dense", "off"): {1: result(0.8, 100), 2: result(0.9, 200), 3: result(0.85, 100)},
            ("dense", "auto"): {1: result(0.8, 50), 2: result(0.9, 50), 3: result(0.85, 80)},
            ("earlybert", "auto"): {1: result(0.8, 25), 2: result(0.8, 25), 3: result(0.8, 20)},
        }
    )
    dense, fast, ticket = comparison["rows"]
    assert (dense["quality"], dense["quality_std"]) == pytest.approx((0.85, 0.05))
    assert dense["seconds"] == {"search": 25, "train": 75, "total": 100}
    assert dense["seconds_over_stock_dense"] == 1
    # Per seed 0.5, 0.25 and 0.8; then 0.25, 0.125 and 0.2.
    assert fast["seconds_over_stock_dense"] == pytest.approx(0.5)
    assert ticket["seconds_over_stock_dense"] == pytest.approx(0.2)
    assert comparison["kernel_speedup"] == [{"of": "dense-auto", "over": "dense-off", "times": 2.0}]
    assert comparison["pruning_speedup"] == [{"of": "earlybert-auto", "over": "dense-auto", "times": 2.0}]
    assert "| dense | off | 0.8500 ± 0.0500 | 25.0 | 75.0 | 100.0 | 80 | 1.00 |" in comparison["markdown"]
    assert "earlybert-auto is 2.00 times as fast as dense-auto" in comparison["markdown"]


@pytest.mark.parametrize(
    ("ticket", "random", "verdict"),
    [
        ([0.8, 0.8], [0.81, 0.82], "The ticket does not beat random (kernels auto: "),
        ([0.8, 0.9], [0.8, 0.9], "The ticket does not beat random (kernels auto: "),
        ([0.8, 0.85, 0.84], [0.8] * 3, "The ticket is not ahead of random by more than 2 standard errors"),
        ([0.81, 0.85, 0.86], [0.8] * 3, "The ticket beats random, by more than 2 standard errors (kernels auto: "),
        ([0.9, 0.91], [0.8, 0.8], "ahead of random, but with fewer than 3 seeds, which proves nothing"),
        ([0.9], [0.8], "ahead of random, but with fewer than 3 seeds, which proves nothing"),
    ],
)
def test_it_says_so_when_the_ticket_does_not_win(ticket: list[float], random: list[float], verdict: str) -> None:
    comparison = summarize(
        {
            ("earlybert", "auto"): {seed: result(quality, 10) for seed, quality in enumerate(ticket)},
            ("random", "auto"): {seed: result(quality, 10) for seed, quality in enumerate(random)},
        }
    )
    assert len(comparison["verdicts"]) == 1
    assert verdict in comparison["verdicts"][0]
    assert comparison["verdicts"][0] in comparison["markdown"]


def test_a_verdict_shows_its_numbers() -> None:
    gains = {1: 0.01, 2: 0.05, 3: 0.06}
    comparison = summarize(
        {
            ("earlybert", "off"): {seed: result(0.8 + gain, 10) for seed, gain in gains.items()},
            ("random", "off"): {seed: result(0.8, 10) for seed in gains},
        }
    )
    # The sample's standard deviation is sqrt(7) / 100, over sqrt(3).
    assert "is +0.0400 accuracy on average, standard error 0.0153, n = 3, ahead with 3" in comparison["markdown"]
    assert comparison["noise"] is None


def test_one_seed_comes_with_a_warning() -> None:
    runs = {("dense", "off"): {1: result(0.9, 10)}, ("dense", "auto"): {1: result(0.8, 5)}}
    comparison = summarize(runs)
    # sqrt(0.8 * 0.2 / 400)
    assert "differences of accuracy within about 0.0200 are noise" in comparison["markdown"]
    assert "n = 400 evaluation examples" in comparison["noise"]
    for (run,) in (seeds.values() for seeds in runs.values()):
        run["eval"], run["main_metric"] = {"pearson": -0.1}, "pearson"
    assert summarize(runs)["noise"] == "With one seed, small differences of pearson are noise."


def test_a_comparison_without_stock_has_no_empty_column_and_calls_slow_slow() -> None:
    def result(total: float) -> dict:
        return {
            "eval": {"accuracy": 0.8}, "main_metric": "accuracy", "parameters": {"dense": 9, "trained": 9},
            "seconds": {"search": 0.0, "train": total, "total": total}, "task": "sst2", "model": "m", "machine": {},
            "versions": {}, "backend": {}, "examples": {"train": 9, "eval": {"dev": 4}},
        }  # fmt: skip

    table = summarize({("dense", "auto"): {1: result(10)}, ("earlybert", "auto"): {1: result(20)}})["markdown"]
    assert "of stock dense" not in table
    assert "the last column" not in table.lower()
    assert "| 9 |\n" in table
    assert "earlybert-auto is 2.00 times as slow as dense-auto" in table
