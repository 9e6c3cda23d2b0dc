"""One step of AdamW and of LAMB over the parameters of a whole BERT, by plain PyTorch and by our backends."""

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
from .cases import BASELINE, TORCH_PROVIDERS, providers
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
        name: what the rows call it.
        make_step: given parameters, a learning rate and a provider, makes the optimizer and returns its step.
        plain: providers that are plain PyTorch, the baseline first; our backends come behind them.
        exact: the provider that computes in float64 what all of them are compared with.
    """

    name: str
    make_step: Callable[[list[torch.Tensor], float, str], Callable[[], object]]
    plain: Sequence[str]
    exact: str


#: torch's AdamW; eager is what it chooses by itself.
_FLAGS = {
    BASELINE: {},
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "for-loop": {"foreach": False},
}


def _adamw(parameters: list[torch.Tensor], lr: float, provider: str) -> Callable[[], object]:
    if provider in _FLAGS:
        return torch.optim.AdamW(parameters, lr=lr, **_FLAGS[provider]).step
    return ek.use_backend(provider)(ek.AdamW(parameters, lr=lr).step)


def _lamb(parameters: list[torch.Tensor], lr: float, provider: str) -> Callable[[], object]:
    optimizer = ek.Lamb(parameters, lr=lr)
    return ek.use_backend("reference" if provider == BASELINE else provider)(optimizer.step)


SUBJECTS = (
    OptimizerSubject("adamw", _adamw, plain=tuple(_FLAGS), exact="for-loop"),
    OptimizerSubject("lamb", _lamb, plain=(BASELINE,), exact=BASELINE),
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One row per optimizer, shape, unit and provider; an optimizer knows no lengths and no direction."""
    option = metafunc.config.getoption
    # torch.compile has no optimizer to compile, and the reference is what eager LAMB runs.
    without = (*TORCH_PROVIDERS, "reference")
    backends = [name for name in providers("optimizer_step", provenance.pick_device()) if name not in without]
    rows = [
        (subject, shape, unit, provider)
        for subject, shape, unit in itertools.product(SUBJECTS, option("sizes"), _UNITS)
        if unit in option("units")
        for provider in (*subject.plain, *backends)
    ]
    ids = ["-".join((subject.name, *others)) for subject, *others in rows]
    metafunc.parametrize(("subject", "shape", "unit", "provider"), rows, ids=ids)


def test_optimizer_step(
    subject: OptimizerSubject,
    shape: str,
    unit: str,
    provider: str,
    benchmark: Any,
    request: pytest.FixtureRequest,
    session_record: dict[str, Any],
    rates: Rates,
) -> None:
    """One row: checked and timed; float32 throughout, as parameters are trained."""
    device, dtype = provenance.pick_device(), torch.float32
    benchmark.group = f"{subject.name}-{shape}-{unit}"
    shapes = parameter_shapes(shape, unit)
    checked = shapes[:_CHECKED_PARAMETERS]
    errors = check_results(
        results=_after_steps(subject, checked, device, dtype, provider),
        plain=_after_steps(subject, checked, device, dtype, BASELINE),
        exact=_after_steps(subject, checked, device, torch.float64, subject.exact),
        dtype=dtype,
    )
    own, base = (subject.make_step(_parameters(shapes, device, dtype), 1e-5, name) for name in (provider, BASELINE))
    rounds = request.config.getoption("rounds")
    times = run_paired(benchmark, lambda _: own, lambda _: base, device, rounds)
    if times is None:
        return
    count = sum(map(torch.Size.numel, shapes))
    benchmark.extra_info.update(
        op=subject.name,
        shape=shape,
        lengths=None,
        unit=unit,
        mode="step",
        provider=provider,
        baseline=BASELINE,
        dtype="float32",
        parameters=count,
        parameter_tensors=len(shapes),
        errors={"largest": max(errors.values())},
        **times,
        **roofline_entries(roofline.adam(count, dtype.itemsize), times["seconds"], rates(dtype)),
        **session_record,
    )


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


def _after_steps(
    subject: OptimizerSubject, shapes: list[torch.Size], device: torch.device, dtype: torch.dtype, provider: str
) -> dict[str, torch.Tensor]:
    parameters = _parameters(shapes, device, dtype)
    step = subject.make_step(parameters, 1e-2, provider)
    for _ in range(_CHECKED_STEPS):
        step()
    return {f"parameter {number}": parameter.detach() for number, parameter in enumerate(parameters)}
