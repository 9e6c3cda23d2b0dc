"""One step of LAMB over the parameters of a whole BERT: plain PyTorch (eager) and the compiled backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import earlybert_kernels as ek

from ..provenance import pick_device
from .cases import providers
from .optimizers import OptimizerSubject, make_rows, measure_step
from .row import Rates


def _make_step(parameters: list[torch.Tensor], lr: float, provider: str) -> Callable[[], object]:
    optimizer = ek.Lamb(parameters, lr=lr)
    return ek.use_backend("reference" if provider == "eager" else provider)(optimizer.step)


# torch.compile has no optimizer to compile, and the reference is what eager runs.
_PROVIDERS = [name for name in providers("lamb_step", pick_device()) if name not in ("compile", "reference")]
SUBJECT = OptimizerSubject("lamb_step", _make_step, _PROVIDERS, exact="eager")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """See `make_rows`."""
    make_rows(metafunc, SUBJECT)


def test_lamb(
    shape: str,
    unit: str,
    provider: str,
    benchmark: Any,
    request: pytest.FixtureRequest,
    session_record: dict[str, Any],
    rates: Rates,
) -> None:
    """One row."""
    measure_step(SUBJECT, shape, unit, provider, benchmark, request, session_record, rates)
