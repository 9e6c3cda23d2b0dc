"""One step of AdamW over the parameters of a whole BERT, by torch's implementations and by our backends."""

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

#: torch's; eager is what it chooses by itself.
_FLAGS = {
    "eager": {},
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "for-loop": {"foreach": False},
}


def _make_step(parameters: list[torch.Tensor], lr: float, provider: str) -> Callable[[], object]:
    if provider in _FLAGS:
        return torch.optim.AdamW(parameters, lr=lr, **_FLAGS[provider]).step
    return ek.use_backend(provider)(ek.AdamW(parameters, lr=lr).step)


# torch.compile has no optimizer to compile.
_BACKENDS = [name for name in providers("lamb_step", pick_device()) if name not in ("eager", "compile", "reference")]
SUBJECT = OptimizerSubject("adamw", _make_step, [*_FLAGS, *_BACKENDS], exact="for-loop")


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
