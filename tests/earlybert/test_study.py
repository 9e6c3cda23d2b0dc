"""Studies: what is run, what is shared, what is never repeated, and what comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from earlybert import FinetuneArguments, Study, finetune, study
from earlybert.errors import UsageError
from earlybert.files import read_json
from earlybert.programs import finetune as finetuning
from earlybert.programs.study import plan_jobs
from earlybert.programs.summary import ALL_TASKS, tables
from earlybert.study_file import read_study

Make = Callable[..., FinetuneArguments]


@pytest.fixture
def common(tiny_bert: str) -> dict[str, Any]:
    return {
        "model": tiny_bert, "device": "cpu", "batch_size": 8, "max_length": 16, "max_steps": 3, "search_steps": 4,
        "early_bird_interval": 2, "search_learning_rate": 5e-3, "learning_rate": 5e-3,
    }  # fmt: skip


def written(path: Path, **sections: Any) -> str:
    """A study's file."""
    path.write_text(yaml.safe_dump(sections, sort_keys=False))
    return str(path)


def test_what_arms_share_is_run_once_and_nothing_twice(
    common: dict[str, Any], toy_sst2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[FinetuneArguments] = []
    run = finetuning.finetune
    monkeypatch.setattr(finetuning, "finetune", lambda args: done.append(args) or run(args))
    arms: dict[str, Any] = {
        "dense": {"method": "dense"},
        "same": {"method": "dense", "head_ratio": 0.5},
        "ratio": {"neuron_ratio": [0.25, 0.5]},
        "hopeless": {"learning_rate": 1e30},
    }
    sections = {
        "output_dir": str(tmp_path / "study"),
        "seeds": [1, 2],
        "common": common,
        "tasks": {"toy": {"task": "sst2", "data_dir": toy_sst2}},
    }
    results = study(read_study(written(tmp_path / "study.yaml", **sections, arms=arms)))
    each_seed = ["dense", "search", "earlybert", "earlybert", "earlybert"]
    assert [args.method for args in done] == each_seed * 2
    assert [args.seed for args in done] == [1] * 5 + [2] * 5
    assert len(results["failures"]) == 2 and "the loss was not finite" in results["failures"][0]
    assert results["baseline"] == "dense"
    rows = {row["arm"]: row for row in results["tables"]["toy"]}
    assert list(rows) == ["dense", "same", "ratio neuron_ratio=0.25", "ratio neuron_ratio=0.5"]
    assert rows["same"] == rows["dense"] | {"arm": "same", "gain": 0, "gain_error": 0, "ahead": 0}
    assert rows["ratio neuron_ratio=0.5"]["parameters"] < rows["ratio neuron_ratio=0.25"]["parameters"]
    assert (tmp_path / "study" / "study.md").read_text() == results["markdown"]
    assert [run["seed"] for run in read_json(tmp_path / "study" / "results.json")["runs"]] == [1, 2] * 4

    done.clear()
    del arms["hopeless"]
    arms = {"random": {"method": "random"}, "renamed": arms.pop("dense"), **arms}
    again = study(read_study(written(tmp_path / "study.yaml", **sections, arms=arms, baseline="renamed")))
    assert [args.method for args in done] == ["random", "random"]
    assert again["tables"]["toy"][1] == rows["dense"] | {"arm": "renamed"}


KNOBS: dict[str, dict[str, Any]] = {
    "earlybert": {},
    "random": {"method": "random"},
    "inverted": {"method": "inverted", "score": "gate-norm", "ticket_weights": "searched"},
    "much": {"score": "fisher", "ticket_weights": "folded", "distillation": 0.5, "neuron_scope": "mixed"},
    "rewound": {"score": "first-order", "rewind_steps": 2, "kernels": "off"},
}


@pytest.mark.parametrize("knobs", KNOBS)
def test_a_ticket_of_another_runs_search_is_that_of_ones_own(arguments: Make, tmp_path: Path, knobs: str) -> None:
    # So that both searches end at the same step, whatever they look at.
    arm = {"early_bird_threshold": 0.0, "early_bird_interval": 20, **KNOBS[knobs]}
    own = finetune(arguments(output_dir=str(tmp_path / "own"), **arm))
    of_search = {name: value for name, value in arm.items() if name in ("rewind_steps", "kernels")}
    of_search |= {"early_bird_threshold": 0.0, "early_bird_interval": 20}
    search = finetune(arguments(**of_search, method="search", output_dir=str(tmp_path / "search")))
    assert search["ticket"] is None and search["steps"] == own["steps"] | {"train": 0}
    shared = finetune(arguments(search_from=str(tmp_path / "search"), output_dir=str(tmp_path / "drawn"), **arm))
    assert shared["search"] | {"score": own["search"]["score"]} == own["search"]
    for name in ("eval", "steps", "ticket", "parameters", "train_log"):
        assert shared[name] == own[name], name
    for name in ("ticket.json", "gates.safetensors", "scores.safetensors"):
        assert (tmp_path / "drawn" / name).read_bytes() == (tmp_path / "own" / name).read_bytes()
    assert shared["seconds"]["search"] > search["seconds"]["search"] > 0


def test_what_is_no_search_is_refused(arguments: Make, tmp_path: Path) -> None:
    finetune(arguments(method="dense", max_steps=1, output_dir=str(tmp_path / "dense")))
    with pytest.raises(UsageError, match="expected a run with --method search, found one with --method dense"):
        finetune(arguments(search_from=str(tmp_path / "dense")))
    for given in ({"method": "dense"}, {"method": "search"}, {"ticket": "t.json"}):
        with pytest.raises(UsageError, match="--search-from"):
            finetune(arguments(search_from=str(tmp_path / "dense"), **given))


def test_runs_in_several_processes(common: dict[str, Any], toy_sst2: str, tmp_path: Path) -> None:
    sections = {
        "output_dir": str(tmp_path / "study"),
        "seeds": [1],
        "common": {**common, "max_steps": 1},
        "tasks": {"sst2": {"data_dir": toy_sst2}},
        "arms": {"dense": {"method": "dense"}, "ticket": {}},
    }
    results = study(read_study(written(tmp_path / "study.yaml", **sections)), parallel=2)
    assert [(run["arm"], run["machine"]["threads"]) for run in results["runs"]] == [("dense", 1), ("ticket", 1)]
    assert "train: step 1 of 1" in (tmp_path / "study" / "study.log").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [1, 1]}, "seeds: expected a list of different whole numbers"),
        ({"arms": {}}, "expected arms, found none"),
        ({"speed": 1}, "speed: no such section; expected output_dir, seeds"),
        ({"baseline": "b"}, "baseline: expected one of the arms a, found b"),
        ({"common": {}}, "common: expected model, found none"),
        ({"arms": {"a": {"neuron_ration": 0.5}}}, "arms: a: neuron_ration: no such setting; the nearest name is neur"),
        ({"arms": {"a": {"neuron_ratio": [0.5, "x"]}}}, 'arms: a: neuron_ratio: expected a number, found "x"'),
        ({"arms": {"a": {"seed": 3}}}, "arms: a: seed is the study's to say"),
        ({"tasks": {"t": 3}}, "tasks: t: expected names and values, found int"),
        ({"arms": {"a": {"neuron_ratio": 2}}}, "--neuron-ratio: expected a share"),
        ({"tasks": {"t": {}}}, "task"),
    ],
)
def test_files_that_are_not_as_expected(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    sections = {"output_dir": "o", "seeds": [1], "common": {"model": "m"}, "tasks": {"sst2": None}, "arms": {"a": {}}}
    with pytest.raises(UsageError, match=message):
        study(read_study(written(tmp_path / "study.yaml", **{**sections, **change})))


def test_a_search_does_not_depend_on_what_follows_it(arguments: Make, tmp_path: Path) -> None:
    def searches(*changes: dict[str, Any]) -> int:
        arms = {str(number): arguments(**change) for number, change in enumerate(changes)}
        jobs = plan_jobs(Study(str(tmp_path), {"t": arms}, [1], "0"))
        return sum(args.method == "search" for args in jobs)

    after = [{"max_steps": 5}, {"learning_rate": 1e-3}, {"neuron_scope": "layer"}, {"method": "random"}]
    assert searches({}, *after) == 1
    assert searches({}, {"gate_l1": 0.0}, {"search_steps": 3}, {"batch_size": 4}, {"weight_decay": 0.1}) == 5
    # What these leave out on their way depends on the ticket: they are parts of their arms' runs.
    assert searches(*({"gate_penalty": "proximal", **change} for change in after)) == 0


def run_of(task: str, arm: str, seed: int, quality: float, total: float) -> dict[str, Any]:
    seconds = {"search": 1.0, "train": total - 1, "total": total}
    return {"task": task, "arm": arm, "seed": seed, "quality": quality, "seconds": seconds,
            "parameters": {"trained": 10}}  # fmt: skip


def test_the_arithmetic_of_the_tables() -> None:
    dense = [run_of("a", "dense", seed, quality, 10) for seed, quality in ((1, 0.8), (2, 0.9), (3, 0.7))]
    ticket = [run_of("a", "ticket", seed, quality, total) for seed, quality, total in ((1, 0.9, 5), (2, 0.8, 6))]
    other = [run_of("b", arm, 1, quality, 20) for arm, quality in (("dense", 0.2), ("ticket", 0.5))]
    found = tables([*dense, *ticket, *other], "dense")
    row = found["a"][1]
    assert row["quality"] == pytest.approx(0.85) and row["gain"] == pytest.approx(0)
    # The differences are 0.1 and -0.1, of standard deviation sqrt(0.02).
    assert row["gain_error"] == pytest.approx(0.1)
    assert (row["ahead"], row["seconds_over_baseline"]) == (1, pytest.approx(0.55))
    assert found["a"][0]["gain"] is None
    over_all = {row["arm"]: row for row in found[ALL_TASKS]}
    assert over_all["ticket"]["seeds"] == [1], "the other task has no other seed"
    assert over_all["ticket"]["gain"] == pytest.approx((0.1 + 0.3) / 2)
    assert over_all["ticket"]["seconds"]["total"] == pytest.approx(12.5)
    json.dumps(found, allow_nan=False)
