"""Several processes against one: the same tickets, the same losses, and checkpoints that either goes on from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from earlybert import processes
from earlybert.errors import MissingFileError
from tests.helpers import many_processes
from tests.helpers.many_processes import found_by, launch
from tests.helpers.script_checks import CHECKS, PAGE, Runs, assert_same_run, row

pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo to train several processes"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """What two processes have done, and what one does."""
    return Runs.make(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("name", CHECKS)
def test_what_the_page_says_is_so(runs: Runs, name: str) -> None:
    try:
        found = row(name, runs)
    except (ModuleNotFoundError, MissingFileError) as error:
        if getattr(error, "name", None) not in (None, "peft", "sentence_transformers"):
            raise
        pytest.skip(str(error))
    assert found in PAGE.read_text(encoding="utf-8").splitlines()


def test_processes_that_have_trained_apart_are_told_so(runs: Runs) -> None:
    for found in found_by(runs.two, "disagreement"):
        assert "the ticket of process 1 of 2 is not that of process 0" in found["error"]


def test_a_run_one_process_of_which_ends(tmp_path: Path) -> None:
    first, second = launch(tmp_path, "dying")
    assert second.status == 3 and first.status == 1, first.output
    assert "RuntimeError" in first.output
    whole = many_processes.make_trainer(tmp_path / "whole", save_strategy="no")
    whole[0].train()
    assert (tmp_path / "dying" / "checkpoint-6" / "earlybert.pt").is_file()
    resumed = many_processes.resumed(tmp_path / "dying", 6)
    assert_same_run(resumed, many_processes.summary(*whole), evaluated=False)


def test_without_processes_nothing_is_compared() -> None:
    assert processes.count() == 1
    processes.check_same("the ticket", object())
    tensors = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]
    processes.average(tensors)
    assert tensors[0].tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="expected the model in one DistributedDataParallel"):
        processes.wrapper_of(torch.nn.Linear(1, 1))


def test_a_wrapper_made_anew_is_as_it_was(tmp_path: Path) -> None:
    """It reduces the new Parameters, in the way that it was told to, and no longer the old ones."""
    seen = []

    def hook(state, bucket):  # torch looks at the types, and knows no strings
        seen.append((state, sorted(parameter.shape for parameter in bucket.parameters())))
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        options = {"find_unused_parameters": True, "bucket_cap_mb": 7, "gradient_as_bucket_view": True}
        wrapper = DistributedDataParallel(model, **options, broadcast_buffers=False)
        wrapper.register_comm_hook("state", hook)
        assert processes.wrapper_of(model) is wrapper
        model[0].weight = torch.nn.Parameter(torch.ones(4, 2))
        processes.rewrap(wrapper)
        assert wrapper.find_unused_parameters and wrapper.gradient_as_bucket_view and not wrapper.broadcast_buffers
        assert wrapper.bucket_bytes_cap == 7 * 2**20
        wrapper(torch.rand(5, 2)).square().sum().backward()
        assert seen == [("state", [(4,), (4,), (4,), (4, 2)])]
        assert model[0].weight.grad.any()
        wrapper.mixed_precision = object()
        with pytest.raises(NotImplementedError, match="autocast"):
            processes.rewrap(wrapper)
        del wrapper
    finally:
        dist.destroy_process_group()
