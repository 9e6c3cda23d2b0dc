"""The rows as pytest-benchmark writes them, from a run of its own."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.ops import row
from bench.ops.cases import Case, Problem
from bench.ops.correctness import WrongResultError
from bench.ops.paired_timing import MIN_ROUNDS, WARM_UP, affordable_rounds, run_paired
from bench.report import report
from tests.helpers.run_pytest import run_pytest

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed (pip install '.[bench]')")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "results.json"
    done = run_pytest(
        "bench/ops/bench_dropout_add_layer_norm.py", "bench/ops/bench_attention.py", "--benchmark-only",
        "--sizes", "tiny", "--lengths", "sst2", "--units", "dense", "--modes", "full", "--batch-size", "4",
        "--rounds", "3", "-k", "not compile", f"--benchmark-json={path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())


def test_a_row_says_all_there_is_to_know(content):
    rows = {(b["extra_info"]["op"], b["extra_info"]["provider"]): b for b in content["benchmarks"]}
    assert {op for op, _ in rows} == {"attention", "dropout_add_layer_norm"}
    for (op, provider), benchmark in rows.items():
        info = benchmark["extra_info"]
        assert benchmark["name"] == f"test_{op}[tiny-sst2-dense-full-{provider}]"
        assert info["seconds"] == benchmark["stats"]["data"]
        assert len(info["baseline_seconds"]) == len(info["seconds"]) == 3
        ratios = sorted(own / base for own, base in zip(info["seconds"], info["baseline_seconds"], strict=True))
        assert info["ratio"]["median"] == pytest.approx(ratios[1])
        assert (info["sequences"], info["tokens"]) == (4, sum(info["sequence_lengths"]))
        assert info["dropout"] == 0.1 and info["errors"]["output"] < 1e-5
        assert info["floor_bytes"] > 0 and info["gbytes_per_second"] > 0
        assert {"device", "machine", "versions", "commit", "rates", "floor_share", "lengths", "mode"} <= set(info)


def test_the_report_has_every_row(content, tmp_path, capsys):
    path = tmp_path / "micro.json"
    path.write_text(json.dumps(content))
    report.main([str(path), "--plots", str(tmp_path / "plots")])
    printed = capsys.readouterr().out
    assert printed.count("| tiny | sst2 | dense | full |") == len(content["benchmarks"])
    assert (tmp_path / "plots" / "micro-attention.png").read_bytes().startswith(b"\x89PNG")


def test_rows_are_kept_when_the_session_is_killed(tmp_path):
    """By a plugin that ends the process, as a hang or a fault on a GPU does, when the third row is about to run."""
    setup = "def pytest_runtest_setup(item, seen=[]):\n    seen.append(item)\n    len(seen) < 3 or os._exit(9)\n"
    (tmp_path / "fatal_third_row.py").write_text(f"import os\n\n{setup}")
    path = tmp_path / "rows.json"
    done = run_pytest(
        "bench/ops/bench_attention.py", "-p", "fatal_third_row", "-o", f"pythonpath=. {tmp_path}", "--sizes", "tiny",
        "--lengths", "8", "--units", "dense", "masked", "--batch-size", "2", "--rounds", "2",
        "-k", "eager or reference", "--rows-json", str(path),
    )  # fmt: skip
    assert done.returncode == 9
    rows = json.loads(path.read_text())["benchmarks"]
    names = ["test_attention[tiny-8-dense-full-eager]", "test_attention[tiny-8-dense-full-reference]"]
    assert [row["name"] for row in rows] == names
    assert [len(row["extra_info"]["seconds"]) for row in rows] == [2, 2]
    (_, markdown, _), *_ = report.sections({"benchmarks": rows})
    assert markdown.count("| tiny | 8 | dense | full |") == 2


def test_a_wrong_provider_has_no_row(monkeypatch):
    problem = Problem("feed_forward", "tiny", "sst2", "dense", 2, torch.float32, torch.device("cpu"))
    from bench.ops.bench_feed_forward import FeedForward

    class Wrong(FeedForward):
        def packed(self, inputs, dropout_p, backend):
            out = super().packed(inputs, dropout_p, backend)
            return out if inputs["x"].dtype == torch.float64 else out * 1.001

    benchmark = SimpleNamespace(pedantic=lambda *_, **__: pytest.fail("a wrong provider was timed"))
    with pytest.raises(WrongResultError, match="output: off by"):
        row.measure_row(benchmark, Wrong, Case(problem, "full", "reference"), 1, lambda dtype: {})


def test_the_baseline_runs_before_every_round():
    order = []

    def pedantic(measure, rounds):
        for _ in range(rounds):
            measure()

    stats = SimpleNamespace(stats=SimpleNamespace(data=[100.0, 200.0]))
    times = run_paired(
        SimpleNamespace(pedantic=pedantic, stats=stats),
        lambda copy: lambda: order.append(f"own {copy}"),
        lambda copy: lambda: order.append(f"baseline {copy}"),
        torch.device("cpu"),
        rounds=2,
    )
    assert order == ["baseline 0", "own 0"] * (WARM_UP + 2)
    assert times["calls"] == 1 and len(times["baseline_seconds"]) == 2
    assert stats.stats.data == times["seconds"] and max(times["seconds"]) < 1


def test_slow_rows_get_fewer_rounds():
    assert affordable_rounds(100, 0.001) == 100
    assert affordable_rounds(100, 0.1) == 30
    assert affordable_rounds(100, 60.0) == MIN_ROUNDS
    assert affordable_rounds(2, 60.0) == 2


def test_plain_pytest_collects_no_benchmark(pytestconfig):
    assert pytestconfig.getini("testpaths") == ["tests"]
    assert "bench_*.py" in pytestconfig.getini("python_files")
    assert not list((ROOT / "tests").rglob("bench_*.py"))
