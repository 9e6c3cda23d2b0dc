"""The rows of what is called once for a whole model or batch."""

import json
from types import SimpleNamespace

import pytest
import torch

import earlybert_kernels as ek
from bench.ops import bench_whole_model as rows
from bench.ops.correctness import WrongResultError
from bench.shapes import SHAPES
from tests.helpers.run_pytest import run_pytest
from tests.helpers.targets import device_of

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed (pip install '.[bench]')")


@pytest.fixture(autouse=True)
def _few_sequences(monkeypatch):
    monkeypatch.setattr(rows, "_SEQUENCES", 6)


@pytest.mark.parametrize("op", rows.CALLS)
def test_every_backend_gives_what_eager_gives(op):
    for backend in ek.ops.backends(op):
        torch.manual_seed(0)
        call = rows.CALLS[op](SHAPES["tiny"], torch.device(device_of(backend)))
        assert call.bytes > 0
        assert rows._largest_difference(call.run(backend), call.run("reference")) <= rows._ROUNDING


def test_every_op_without_a_subject_or_an_optimizer_has_rows(tmp_path):
    path = tmp_path / "rows.json"
    done = run_pytest(
        "bench/ops/bench_whole_model.py", "--benchmark-only", "--sizes", "tiny", "--rounds", "2", "-k", "not compile",
        f"--benchmark-json={path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = [each["extra_info"] for each in json.loads(path.read_text())["benchmarks"]]
    assert {row["op"] for row in found} == set(rows.CALLS)
    assert all(row["floor_bytes"] > 0 and row["errors"]["largest"] == 0 for row in found)


def test_a_wrong_result_has_no_row(monkeypatch):
    broken = rows.Call(lambda backend: torch.tensor([0.0 if backend == "reference" else 1.0]), 1)
    monkeypatch.setitem(rows.CALLS, "pad", lambda shape, device: broken)
    benchmark = SimpleNamespace(pedantic=lambda *_, **__: pytest.fail("a wrong provider was timed"))
    with pytest.raises(WrongResultError, match="pad by cuda is off from eager by 1"):
        rows.test_whole_model("tiny", "pad", "cuda", benchmark, None, {}, lambda dtype: {})
