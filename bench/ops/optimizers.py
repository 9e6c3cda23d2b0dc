"""One row of an optimizer's benchmark: a step over the parameters of a whole BERT."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification

import earlybert_kernels as ek

from .. import provenance
from ..shapes import SHAPES
from . import roofline
from .correctness import check_results
from .paired_timing import run_paired
from .row import Rates, roofline_entries

_UNITS = ("dense", "compact")
#: The embeddings, and one layer: tensors of every size there is, and few enough for a check in float64.
_CHECKED_PARAMETERS = 21
_CHECKED_STEPS = 3


@dataclass(frozen=True)
class OptimizerSubject:
    """An optimizer and the ways to compute its step.

    Attributes:
        op: what the rows call it.
        make_step: given parameters, a learning rate and a provider, makes the optimizer and returns its step.
        providers: by name; the first is the baseline.
        exact: the provider that computes in float64 what all of them are compared with.
    """

    op: str
    make_step: Callable[[list[torch.Tensor], float, str], Callable[[], object]]
    providers: Sequence[str]
    exact: str


def make_rows(metafunc: pytest.Metafunc, subject: OptimizerSubject) -> None:
    """One row per shape, unit and provider; an optimizer knows no lengths and no direction."""
    option = metafunc.config.getoption
    units = [unit for unit in _UNITS if unit in option("units")]
    rows = list(itertools.product(option("sizes"), units, subject.providers))
    metafunc.parametrize(("shape", "unit", "provider"), rows, ids=["-".join(row) for row in rows])


def parameter_shapes(shape: str, unit: str) -> list[torch.Size]:
    """The shapes of all parameters of a sequence classifier, or of what is left of it with the paper's ticket."""
    with torch.device("meta"):
        model = BertForSequenceClassification(SHAPES[shape].config())
    if unit == "compact":
        ek.compact(model, SHAPES[shape].ticket())
    return [parameter.shape for parameter in model.parameters()]


def measure_step(
    subject: OptimizerSubject,
    shape: str,
    unit: str,
    provider: str,
    benchmark: Any,
    request: pytest.FixtureRequest,
    session_record: dict[str, Any],
    rates: Rates,
) -> None:
    """Checks and times one row; float32 throughout, as parameters are trained.

    Raises:
        WrongResultError: the provider's results are wrong, so that there is no row.
    """
    device, dtype = provenance.pick_device(), torch.float32
    baseline = subject.providers[0]
    benchmark.group = f"{subject.op}-{shape}-{unit}"
    shapes = parameter_shapes(shape, unit)
    checked = shapes[:_CHECKED_PARAMETERS]
    errors = check_results(
        results=_after_steps(subject, checked, device, dtype, provider),
        plain=_after_steps(subject, checked, device, dtype, baseline),
        exact=_after_steps(subject, checked, device, torch.float64, subject.exact),
        dtype=dtype,
    )
    own, base = (subject.make_step(_parameters(shapes, device, dtype), 1e-5, name) for name in (provider, baseline))
    rounds = request.config.getoption("rounds")
    times = run_paired(benchmark, lambda _: own, lambda _: base, device, rounds)
    if times is None:
        return
    count = sum(map(torch.Size.numel, shapes))
    benchmark.extra_info.update(
        op=subject.op,
        shape=shape,
        lengths=None,
        unit=unit,
        mode="step",
        provider=provider,
        baseline=baseline,
        dtype="float32",
        parameters=count,
        parameter_tensors=len(shapes),
        errors={"largest": max(errors.values())},
        **times,
        **roofline_entries(roofline.adam(count, dtype.itemsize), times["seconds"], rates(dtype)),
        **session_record,
    )


def _parameters(shapes: list[torch.Size], device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    parameters = []
    for shape in shapes:
        parameter = torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()
        parameter.grad = torch.randn(shape, generator=generator).to(device, dtype)
        parameters.append(parameter)
    return parameters


def _after_steps(
    subject: OptimizerSubject, shapes: list[torch.Size], device: torch.device, dtype: torch.dtype, provider: str
) -> dict[str, torch.Tensor]:
    parameters = _parameters(shapes, device, dtype)
    step = subject.make_step(parameters, 1e-2, provider)
    for _ in range(_CHECKED_STEPS):
        step()
    return {f"parameter {number}": parameter.detach() for number, parameter in enumerate(parameters)}
