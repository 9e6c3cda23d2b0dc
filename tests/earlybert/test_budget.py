"""Targets in a user's terms: what is dropped for them, and whether what comes of it is what was asked for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import earlybert_kernels as ek
from earlybert import FinetuneArguments, finetune, report
from earlybert.errors import UsageError
from earlybert.programs import budget
from earlybert.search.budget import Cost, fitted, kept_shares, parameter_cost
from earlybert.search.drawing import draw


def test_ratios_leave_the_target_of_the_cost() -> None:
    cost = Cost(rest=1.0, heads=3.0, neurons=6.0)
    heads, neurons = cost.ratios(0.7, 1 / 3, 0.4, [1200] * 6, flag="--target")

    assert cost.of(1 - heads, 1 - neurons) == pytest.approx(0.7 * cost.dense, abs=1e-2)
    assert heads / neurons == pytest.approx(1 / 3 / 0.4, rel=1e-2)


def test_neurons_make_up_for_what_is_lost_by_rounding_heads() -> None:
    cost = Cost(rest=1.0, heads=3.0, neurons=6.0)
    heads, neurons = cost.ratios(0.7, 1 / 3, 0.4, [4, 4], flag="--target")
    scores = [torch.rand(4)] * 2, [torch.rand(10000)] * 2
    ticket = draw(*scores, head_ratio=heads, neuron_ratio=neurons)

    assert kept_shares(ticket)[0] == 0.75 and 1 - heads != 0.75
    assert cost.of(*kept_shares(ticket)) == pytest.approx(0.7 * cost.dense, rel=1e-3)


@pytest.mark.parametrize("ratios", [(0.0, 0.5), (0.5, 0.0)])
def test_one_kind_of_units_may_be_all_that_is_dropped(ratios: tuple[float, float]) -> None:
    found = Cost(rest=1.0, heads=3.0, neurons=6.0).ratios(0.8, *ratios, [12] * 6, flag="--target")

    assert [ratio > 0 for ratio in found] == [ratio > 0 for ratio in ratios]


@pytest.mark.parametrize("ratios", [(1 / 3, 0.4), (0.0, 0.0)])
def test_what_no_ticket_reaches_is_refused(ratios: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match=r"--target-speedup: a ticket .* costs at least"):
        Cost(rest=5.0, heads=1.0, neurons=1.0).ratios(0.5, *ratios, [12] * 6, flag="--target-speedup")


def test_a_linear_cost_is_found_in_what_was_measured() -> None:
    cost = Cost(rest=0.2, heads=0.3, neurons=0.5)
    kept = [(1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (0.5, 0.5)]

    assert dataclasses.astuple(fitted(kept, [cost.of(*shares) for shares in kept])) == pytest.approx((0.2, 0.3, 0.5))


def test_the_parameters_of_a_ticket_are_counted_exactly() -> None:
    config = BertConfig(hidden_size=16, num_attention_heads=4, intermediate_size=32, num_hidden_layers=2, vocab_size=50)
    model = BertForSequenceClassification(config)
    cost = parameter_cost(model)
    ticket = ek.Ticket([[0], [1, 2, 3]], [range(5), range(20)], heads_of=[4, 4], neurons_of=[32, 32])
    ek.compact(model, ticket)

    assert cost.of(*kept_shares(ticket)) == pytest.approx(sum(p.numel() for p in model.parameters()))


def test_a_run_keeps_the_parameters_that_are_asked_for(arguments: Callable[..., FinetuneArguments]) -> None:
    metrics = finetune(arguments(target_parameters=0.9, multiple_of=2))
    dense, trained = (metrics["parameters"][name] for name in ("dense", "trained"))
    found = metrics["budget"]

    one_step = 2 * found["neurons"] / sum(metrics["ticket"]["neurons_of"])  # of what neurons can be rounded by
    assert abs(trained - 0.9 * dense) <= one_step
    assert all(width % 2 == 0 for width in metrics["ticket"]["neurons"])
    assert found["rest"] + found["heads"] + found["neurons"] == dense
    assert found["predicted_speedup"] is None and found["measured_speedup"] is None


def test_a_run_drops_what_makes_its_step_as_fast_as_asked_for(
    arguments: Callable[..., FinetuneArguments], monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = Cost(rest=0.1, heads=0.4, neurons=0.5)
    monkeypatch.setattr(budget, "_step_seconds", _seconds_by(cost))
    args = arguments(target_speedup=1.25, multiple_of=2)
    found = finetune(args)["budget"]

    assert [found[name] for name in ("rest", "heads", "neurons")] == pytest.approx([0.1, 0.4, 0.5])
    assert found["predicted_speedup"] == pytest.approx(1.25, rel=0.05)
    assert found["measured_speedup"] == pytest.approx(found["predicted_speedup"])
    assert found["seconds"] > 0
    page = report(args.output_dir).read_text(encoding="utf-8")
    assert f"1.25 times as fast as the dense model&#39;s asked for, {found['predicted_speedup']:.2f} predicted" in page


def _seconds_by(cost: Cost) -> Callable[..., list[float]]:
    def step_seconds(model: torch.nn.Module, stage: object, device: torch.device, steps: int) -> list[float]:
        ticket = getattr(model.config, "ticket", None)
        return [cost.dense if ticket is None else cost.of(*kept_shares(ticket))] * steps

    return step_seconds


def test_steps_are_measured_and_leave_the_run_as_it_is(
    arguments: Callable[..., FinetuneArguments], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = budget._step_seconds

    def step_seconds(model: torch.nn.Module, *args: Any) -> list[float]:
        measured = measure(model, *args)
        assert len(measured) == 4 and min(measured) > 0
        return _seconds_by(Cost(rest=0.1, heads=0.4, neurons=0.5))(model, *args)  # a toy's are all the same

    monkeypatch.setattr(budget, "_step_seconds", step_seconds)
    asked = finetune(arguments(target_speedup=1.25, output_dir=str(tmp_path / "asked")))
    ratios = {name: asked["budget"][name] for name in ("head_ratio", "neuron_ratio", "multiple_of")}
    given = finetune(arguments(**ratios, output_dir=str(tmp_path / "given")))

    assert asked["train_log"] == given["train_log"] and asked["search"]["log"] == given["search"]["log"]
    first, second = (json.loads((tmp_path / name / "ticket.json").read_text()) for name in ("asked", "given"))
    assert first == second


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"target_speedup": 1.0}, "--target-speedup: expected a number above 1, found 1.0"),
        ({"target_speedup": float("nan")}, "--target-speedup: expected a number above 1, found nan"),
        ({"target_parameters": 1.0}, "--target-parameters: expected a share between 0 and 1, found 1.0"),
        ({"target_parameters": 0.5, "target_speedup": 1.5}, "exclude each other"),
        ({"target_parameters": 0.5, "ticket": "ticket.json"}, "--ticket: what a given ticket keeps is settled"),
    ],
)
def test_targets_that_cannot_be_are_refused(
    arguments: Callable[..., FinetuneArguments], changes: dict[str, object], expected: str
) -> None:
    with pytest.raises(UsageError, match=expected):
        finetune(arguments(**changes))
