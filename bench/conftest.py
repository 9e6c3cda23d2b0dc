"""The microbenchmarks' options, the rows that they make, and what all rows of a session share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from earlybert.files import write_json

from . import provenance
from .lengths import HISTOGRAMS, is_known
from .ops.cases import UNITS, Case, make_cases
from .ops.roofline import MODES
from .ops.row import CannotRunError, Rates, measure_row, profile_row
from .ops.subject import Subject
from .rates import measure_rates
from .shapes import SHAPES

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _mix_of_lengths(name: str) -> str:
    if not is_known(name):
        raise ValueError(name)
    return name


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options that widen or narrow what is measured; `-k` selects among the rows that they make."""
    group = parser.getgroup("microbenchmarks of the ops")
    shown = "default: %(default)s"
    group.addoption("--sizes", nargs="+", choices=tuple(SHAPES), default=["minilm"], help=shown)
    group.addoption(
        "--lengths",
        nargs="+",
        type=_mix_of_lengths,
        default=["sst2", "128"],
        help=f"{', '.join(HISTOGRAMS)}, or a number of tokens that all sequences have; {shown}",
    )
    group.addoption("--modes", nargs="+", choices=MODES, default=["full"], help=shown)
    group.addoption("--units", nargs="+", choices=UNITS, default=list(UNITS), help=shown)
    group.addoption("--batch-size", type=int, default=32, help=f"sequences; {shown}")
    group.addoption("--tokens", type=int, help="real tokens of a batch, about, in place of --batch-size")
    group.addoption("--dropout", type=float, help="default: BERT's in ops that have dropout")
    group.addoption("--dtype", choices=tuple(_DTYPES), default="float32", help=shown)
    group.addoption("--rounds", type=int, default=10, help=f"rounds of a row, of a slow one fewer; {shown}")
    group.addoption(
        "--rows-json",
        type=Path,
        help="file for the rows, written anew after each: whatever ends the session, those before it are kept",
    )
    group.addoption(
        "--profile",
        action="store_true",
        help="time nothing, and run each row's call once between cudaProfilerStart and cudaProfilerStop, for ncu",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes the rows of a file with a `SUBJECT`, for every test in it that takes a `case`."""
    if "case" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    subject: type[Subject] = metafunc.module.SUBJECT
    cases = make_cases(
        subject.op,
        [unit for unit in subject.units if unit in option("units")],
        sizes=option("sizes"),
        lengths=option("lengths"),
        modes=option("modes"),
        batch_size=option("batch_size"),
        tokens=option("tokens"),
        dtype=_DTYPES[option("dtype")],
        device=provenance.pick_device(),
        dropout=option("dropout"),
    )
    metafunc.parametrize("case", cases, ids=[case.id for case in cases])


@pytest.fixture(scope="session")
def session_record() -> dict[str, Any]:
    """Device, machine, versions and commit."""
    return provenance.provenance(provenance.pick_device())


@pytest.fixture(scope="session")
def rates() -> Rates:
    """The machine's rates in a dtype, measured once."""
    return functools.cache(lambda dtype: measure_rates(provenance.pick_device(), dtype))


@pytest.fixture(scope="session")
def _rows() -> list[dict[str, Any]]:
    return []


@pytest.fixture(autouse=True)
def _keep_rows(request: pytest.FixtureRequest, _rows: list[dict[str, Any]]) -> Iterator[None]:
    """Writes `--rows-json`: of pytest-benchmark's JSON, which is written at the session's end, what reports read."""
    benchmark = request.getfixturevalue("benchmark") if "benchmark" in request.fixturenames else None
    yield
    path = request.config.getoption("rows_json")
    if path is not None and benchmark is not None and "op" in benchmark.extra_info:
        _rows.append({"name": request.node.name, "extra_info": benchmark.extra_info})
        write_json(path, {"benchmarks": _rows})


@pytest.fixture
def measure(
    benchmark: Any, request: pytest.FixtureRequest, session_record: dict[str, Any], rates: Rates
) -> Callable[[type[Subject], Case], None]:
    """Checks, times and records one row; a provider whose results are wrong fails the test and has no row."""

    def run(subject: type[Subject], case: Case) -> None:
        try:
            if request.config.getoption("profile"):
                profile_row(subject, case)
                pytest.skip("profiled, and not timed")
            measure_row(benchmark, subject, case, request.config.getoption("rounds"), rates)
        except CannotRunError as error:
            pytest.skip(str(error))
        benchmark.extra_info.update(session_record)

    return run
