from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from earlybert import FinetuneArguments, finetuning
from earlybert.compare import compare, summarize
from earlybert.errors import UsageError

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

    monkeypatch.setattr(finetuning._Run, "execute", spy := Spy(finetuning._Run.execute))
    comparison = compare(template, variants, [1, 2])
    assert spy.calls == 4, "the dense runs are not repeated"
    assert [(row["method"], row["kernels"]) for row in comparison["rows"]] == variants
    assert comparison["rows"][0] == first["rows"][0]
    assert (tmp_path / "comparison.md").read_text() == comparison["markdown"]
    for name in ("dense-off-seed1", "random-auto-seed2"):
        assert (tmp_path / name / "metrics.json").exists()


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
    run = tmp_path / "dense-auto-seed2"
    run.mkdir()
    (run / "arguments.json").write_text(json.dumps({"seed": 7}))
    with pytest.raises(UsageError, match="can only be continued with the arguments"):
        compare(template, [("dense", "auto")], [1, 2])


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
        ([0.9, 0.8], [0.8, 0.89], "The ticket does not beat random by more than the seeds differ"),
        ([0.9, 0.91], [0.8, 0.8], "The ticket beats random"),
        ([0.9], [0.8], "on one seed, which proves nothing"),
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
