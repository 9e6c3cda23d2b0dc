"""One step of torch's AdamW over the parameters of a whole BERT, by each of torch's implementations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from .optimizers import OptimizerSubject, make_rows, measure_step
from .row import Rates

#: eager is what torch chooses by itself.
_FLAGS = {
    "eager": {},
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "for-loop": {"foreach": False},
}


def _make_step(parameters: list[torch.Tensor], lr: float, provider: str) -> Callable[[], object]:
    return torch.optim.AdamW(parameters, lr=lr, **_FLAGS[provider]).step


SUBJECT = OptimizerSubject("adamw", _make_step, tuple(_FLAGS), exact="for-loop")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """See `make_rows`."""
    make_rows(metafunc, SUBJECT)


def test_adamw(
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
