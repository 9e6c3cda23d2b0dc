"""The studies that the recipe and the README's figures come from: their files are ones, and the splits are disjoint."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.studies import splits
from earlybert import RECIPES
from earlybert.programs.study import plan_jobs
from earlybert.study_file import read_study

FOLDER = Path(splits.__file__).parent


@pytest.mark.parametrize("name", ["draw", "quality", "recipe", "recipe-again"])
def test_files_are_studies(name: str) -> None:
    study = read_study(str(FOLDER / f"{name}.yaml"))
    assert {"sst2", "cola"} <= {*study.arms} <= {"sst2", "cola", "mrpc"}
    for args in plan_jobs(study):
        args.check()


def test_the_random_ticket_is_by_the_recipe_that_it_is_a_control_of() -> None:
    arms = read_study(str(FOLDER / "quality.yaml")).arms["sst2"]
    for name in ("ticket, best", "random", "inverted"):
        assert {key: getattr(arms[name], key) for key in RECIPES["best"]} == RECIPES["best"]


def test_splits_are_apart_and_of_the_training_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"sst2": 25000, "cola": 8551, "mrpc": 3668}
    for task, count in counts.items():
        header = "a header\n" if splits.SPLITS[task].has_header else ""
        (tmp_path / "glue" / task).mkdir(parents=True)
        rows = "".join(f"row {number}\n" for number in range(count))
        (tmp_path / "glue" / task / "train.tsv").write_text(header + rows)
    monkeypatch.setattr(sys, "argv", ["splits", str(tmp_path / "glue"), str(tmp_path / "splits")])
    splits.main()
    for task, expected in {"sst2": (5000, 2000), "cola": (7551, 1000), "mrpc": (3000, 668)}.items():
        lines = [(tmp_path / "splits" / task / f"{part}.tsv").read_text().splitlines() for part in ("train", "dev")]
        if splits.SPLITS[task].has_header:
            assert [part.pop(0) for part in lines] == ["a header"] * 2
        assert tuple(map(len, lines)) == expected and not {*lines[0]} & {*lines[1]}
