"""One step of torch's AdamW over the parameters of a whole BERT, by each of torch's implementations."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification

import earlybert_kernels as ek

from . import floors, record
from .correctness import check_results
from .paired import run_paired
from .row import Rates, floor_entries
from .shapes import SHAPES

#: eager is what torch chooses by itself.
_PROVIDERS = {
    "eager": {},
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "for-loop": {"foreach": False},
}
_BASELINE = "eager"
_UNITS = ("dense", "compact")
#: The embeddings, and one layer: tensors of every size there is, and few enough for a check in float64.
_CHECKED_PARAMETERS = 21
_CHECKED_STEPS = 3


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One row per shape, unit and provider; an optimizer knows no lengths and no direction."""
    option = metafunc.config.getoption
    units = [unit for unit in _UNITS if unit in option("units")]
    rows = list(itertools.product(option("sizes"), units, _PROVIDERS))
    metafunc.parametrize(("shape", "unit", "provider"), rows, ids=["-".join(row) for row in rows])


def parameter_shapes(shape: str, unit: str) -> list[torch.Size]:
    """The shapes of all parameters of a sequence classifier, or of what is left of it with the paper's ticket."""
    with torch.device("meta"):
        model = BertForSequenceClassification(SHAPES[shape].config())
    if unit == "compact":
        ek.compact(model, SHAPES[shape].ticket())
    return [parameter.shape for parameter in model.parameters()]


def _parameters(shapes: list[torch.Size], device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    parameters = []
    for shape in shapes:
        parameter = torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()
        parameter.grad = torch.randn(shape, generator=generator).to(device, dtype)
        parameters.append(parameter)
    return parameters


def _after_steps(shapes: list[torch.Size], device: torch.device, dtype: torch.dtype, flags: dict[str, bool]) -> dict:
    parameters = _parameters(shapes, device, dtype)
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, **flags)
    for _ in range(_CHECKED_STEPS):
        optimizer.step()
    return {f"parameter {number}": parameter.detach() for number, parameter in enumerate(parameters)}


def test_adamw(
    shape: str,
    unit: str,
    provider: str,
    benchmark: Any,
    request: pytest.FixtureRequest,
    session_record: dict[str, Any],
    rates: Rates,
) -> None:
    """One row; float32 throughout, as parameters are trained."""
    device, dtype = record.pick_device(), torch.float32
    benchmark.group = f"adamw-{shape}-{unit}"
    shapes = parameter_shapes(shape, unit)
    checked = shapes[:_CHECKED_PARAMETERS]
    errors = check_results(
        results=_after_steps(checked, device, dtype, _PROVIDERS[provider]),
        plain=_after_steps(checked, device, dtype, _PROVIDERS[_BASELINE]),
        exact=_after_steps(checked, device, torch.float64, _PROVIDERS["for-loop"]),
        dtype=dtype,
    )
    own, base = (
        torch.optim.AdamW(_parameters(shapes, device, dtype), lr=1e-5, **_PROVIDERS[name])
        for name in (provider, _BASELINE)
    )
    rounds = request.config.getoption("rounds")
    times = run_paired(benchmark, lambda: own.step, lambda: base.step, device, rounds)
    if times is None:
        return
    count = sum(map(torch.Size.numel, shapes))
    benchmark.extra_info.update(
        op="adamw",
        shape=shape,
        lengths=None,
        unit=unit,
        mode="step",
        provider=provider,
        baseline=_BASELINE,
        dtype="float32",
        parameters=count,
        parameter_tensors=len(shapes),
        errors={"largest": max(errors.values())},
        **times,
        **floor_entries(floors.adamw(count, dtype.itemsize), times["seconds"], rates(dtype)),
        **session_record,
    )
