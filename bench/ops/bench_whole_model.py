"""What is called once for a whole model or batch: gathering the active units' weights, tickets, un-padding, padding.

Plain PyTorch (eager), the same compiled, and the backends that have kernels. Nothing is computed but a few numbers, so
that results have to be eager's own.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import earlybert_kernels as ek

from ..lengths import draw_lengths
from ..provenance import pick_device
from ..shapes import SHAPES, Shape
from .cases import BASELINE, providers
from .correctness import WrongResultError
from .paired_timing import run_paired
from .roofline import Work
from .row import Rates, roofline_entries

_SEQUENCES, _LENGTHS = 256, "sst2"
#: The most by which a distance, which is a quotient, may differ from eager's.
_ROUNDING = 1e-6


class Call(NamedTuple):
    """An op with what it is given: `run(backend)`, and the bytes that it reads and writes at least."""

    run: Callable[[str], Any]
    bytes: int


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _gather_units(shape: Shape, device: torch.device) -> Call:
    """The weights of all layers for the paper's ticket: rows of what makes heads and neurons, columns of what reads."""
    ticket, width = shape.ticket(), shape.hidden
    tensors, units, dims, sizes = [], [], [], []
    for heads, neurons in zip(ticket.heads, ticket.neurons, strict=True):
        heads, neurons = (torch.tensor(kept, device=device) for kept in (heads, neurons))
        of_heads = [((width, width), heads, dim, shape.head_size) for dim in (0, 0, 0, 1)]
        of_neurons = [((shape.neurons, width), neurons, 0, 1), ((width, shape.neurons), neurons, 1, 1)]
        for size, chosen, dim, columns in of_heads + of_neurons:
            tensors.append(torch.randn(size, device=device))
            units.append(chosen)
            dims.append(dim)
            sizes.append(columns)
    run = functools.partial(ek.ops.gather_units, tensors, units, dims, sizes=sizes)
    return Call(lambda backend: run(backend=backend), 2 * _bytes(*run(backend="reference")))


def _ticket_masks(shape: Shape, device: torch.device) -> Call:
    """The neurons of all layers, ranked together."""
    scores = [torch.rand(shape.neurons, device=device) for _ in range(shape.layers)]
    keep = round(0.6 * shape.layers * shape.neurons)
    return Call(lambda backend: ek.ops.ticket_masks(scores, keep, backend=backend), _bytes(*scores) * 5 // 4)


def _ticket_distance(shape: Shape, device: torch.device) -> Call:
    masks = torch.rand(2, shape.layers * shape.neurons, device=device) < 0.6
    return Call(lambda backend: ek.ops.ticket_distance(masks[0], masks[1], backend=backend), _bytes(masks))


def _places(device: torch.device) -> tuple[Tensor, int]:
    """Where the real tokens of a padded batch are, and the longest sequence."""
    lengths = torch.tensor(draw_lengths(_LENGTHS, _SEQUENCES, 0), device=device)
    longest = int(lengths.max())
    return (torch.arange(longest, device=device) < lengths[:, None]).flatten().nonzero().squeeze(1), longest


def _unpad(shape: Shape, device: torch.device) -> Call:
    """Ids and positions, as a model's padded door does it."""
    index, longest = _places(device)
    tensors = [torch.arange(_SEQUENCES * longest, device=device).view(_SEQUENCES, longest) for _ in range(3)]
    return Call(lambda backend: ek.ops.unpad(tensors, index, backend=backend), 2 * 3 * _bytes(index))


def _pad(shape: Shape, device: torch.device) -> Call:
    """A layer's output."""
    index, longest = _places(device)
    hidden = torch.randn(len(index), shape.hidden, device=device)
    run = functools.partial(ek.ops.pad, [hidden], index, _SEQUENCES, longest)
    return Call(
        lambda backend: run(backend=backend), _bytes(hidden) * (len(index) + _SEQUENCES * longest) // len(index)
    )


CALLS = {
    "gather_units": _gather_units,
    "pad": _pad,
    "ticket_distance": _ticket_distance,
    "ticket_masks": _ticket_masks,
    "unpad": _unpad,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One row per shape, op and provider."""
    rows = [
        (shape, op, provider)
        for shape, op in itertools.product(metafunc.config.getoption("sizes"), CALLS)
        for provider in providers(op, pick_device())
        if provider != "reference"  # which eager is
    ]
    ids = [f"{shape}-dense-{op}-{provider}" for shape, op, provider in rows]
    metafunc.parametrize(("shape", "op", "provider"), rows, ids=ids)


def test_whole_model(
    shape: str,
    op: str,
    provider: str,
    benchmark: Any,
    request: pytest.FixtureRequest,
    session_record: dict[str, Any],
    rates: Rates,
) -> None:
    """One row: checked against eager and timed next to it."""
    device = pick_device()
    torch.manual_seed(0)
    call = CALLS[op](SHAPES[shape], device)
    baseline = functools.partial(call.run, "reference")
    if provider == "compile":
        torch._dynamo.reset()
        own = torch.compile(baseline, dynamic=False)
    else:
        own = baseline if provider == BASELINE else functools.partial(call.run, provider)
    with torch.no_grad():
        error = _largest_difference(own(), baseline())
        if error > (_ROUNDING if op == "ticket_distance" else 0):
            raise WrongResultError(f"{op} by {provider} is off from eager by {error:.3g}")
        benchmark.group = f"{op}-{shape}"
        times = run_paired(benchmark, lambda _: own, lambda _: baseline, device, request.config.getoption("rounds"))
    if times is None:
        return
    benchmark.extra_info.update(
        op=op,
        shape=shape,
        lengths=_LENGTHS if op in ("pad", "unpad") else None,
        unit="dense",
        mode="step",
        provider=provider,
        baseline=BASELINE,
        dtype="float32",
        errors={"largest": error},
        **times,
        **roofline_entries(Work(0, call.bytes), times["seconds"], rates(torch.float32)),
        **session_record,
    )


def _largest_difference(ours: Any, eager: Any) -> float:
    pairs = zip(*(each if isinstance(each, list | tuple) else [each] for each in (ours, eager)), strict=True)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)
