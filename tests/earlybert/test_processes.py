"""Several processes against one: the same tickets, the same losses, and checkpoints that either goes on from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForSequenceClassification

from earlybert import processes
from tests.helpers import many_processes
from tests.helpers.many_processes import SCENARIOS, Found, found_by, launch

pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo to train several processes"
)

NAMES = ("plain_loop", "stock_loop", "masked", "disagreement", "trained", "sharded")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes have written."""
    folder = tmp_path_factory.mktemp("two")
    ended = launch(folder, *NAMES)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture
def one(tmp_path: Path) -> Any:
    """What one process finds."""

    def run(name: str) -> Found:
        return SCENARIOS[name](tmp_path)

    return run


def assert_same_run(many: Found, single: Found, *, evaluated: bool = True) -> None:
    """The ticket to the bit; float32 losses but for the order of additions.

    One process adds up the gradients of all rows in a batch; of two, each adds those of its rows, and the two sums are
    added by the all-reduce, and halved.
    """
    for name in ("ticket", "steps", "rates", "best")[: 4 if evaluated else 3]:
        assert many.get(name) == single.get(name), name
    for name in ("losses", "eval")[: 2 if evaluated else 1]:
        torch.testing.assert_close(torch.tensor(many.get(name, [])), torch.tensor(single.get(name, [])), **CLOSE)


CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("name", ["plain_loop", "stock_loop", "masked", "sharded"])
def test_two_processes_train_as_one(two: Path, one: Any, name: str) -> None:
    first, second = found_by(two, name)
    assert_same_run(first, one(name))
    assert first.keys() == second.keys() and first["losses"] == second["losses"]
    assert first.get("ticket") == second.get("ticket")
    assert first["state"].keys() == second["state"].keys()
    assert all(torch.equal(tensor, second["state"][key]) for key, tensor in first["state"].items())


def test_processes_that_have_trained_apart_are_told_so(two: Path) -> None:
    for found in found_by(two, "disagreement"):
        assert "the ticket of process 1 of 2 is not that of process 0" in found["error"]


def test_the_method_inside_trainer(two: Path, one: Any) -> None:
    (first, second), single = found_by(two, "trained"), one("trained")
    assert_same_run(first, single)
    assert first["steps"] < 12 and first["best"] > first["steps"]
    for key, tensor in first["state"].items():
        assert torch.equal(tensor, second["state"][key])
    for name, run in first["plain"].items():
        if name == "bfloat16":  # whose losses are rounded to 3 digits before they are added up
            assert run["rates"] and torch.tensor(run["losses"]).isfinite().all()
        else:
            assert_same_run(run, single["plain"][name])
        assert run["ticket"] == second["plain"][name]["ticket"]
    for run in first["resumed"].values():
        assert run["ticket"] == first["ticket"] and run["losses"] == first["losses"]
    model = AutoModelForSequenceClassification.from_pretrained(two / "model")
    assert all(torch.equal(tensor, first["state"][key]) for key, tensor in model.state_dict().items())


def test_another_number_of_processes_goes_on(two: Path, tmp_path: Path) -> None:
    first, _ = found_by(two, "trained")
    shutil.copytree(two / "run", tmp_path / "run")
    for step in (2, first["steps"], first["steps"] + 2):
        assert_same_run(many_processes.resumed(tmp_path / "run", step), first, evaluated=False)


def test_a_search_in_shards_is_refused(two: Path) -> None:
    for found in found_by(two, "sharded"):
        after_step, compact, convert = found["errors"]
        assert "fully_shard" in after_step and "search with DistributedDataParallel" in after_step
        assert "call compact before" in compact and "call convert before" in convert


def test_a_run_one_process_of_which_ends(tmp_path: Path) -> None:
    ended = launch(tmp_path, "dying")
    assert ended.returncode != 0
    assert "exitcode  : 3" in ended.stderr
    whole = many_processes.make_trainer(tmp_path / "whole", save_strategy="no")
    whole[0].train()
    assert (tmp_path / "dying" / "checkpoint-6" / "earlybert.pt").is_file()
    assert_same_run(many_processes.resumed(tmp_path / "dying", 6), many_processes.summary(*whole))


def test_without_processes_nothing_is_compared() -> None:
    assert processes.count() == 1
    processes.check_same("the ticket", object())
    tensors = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]
    processes.average(tensors)
    assert tensors[0].tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="expected the model in one DistributedDataParallel"):
        processes.wrapper_of(torch.nn.Linear(1, 1))
