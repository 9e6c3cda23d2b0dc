"""The chosen units' parts of many tensors at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..backends import backends_with
from ..backends.backend import Backend
from .checks import check_active, check_gates
from .custom import Halves, Kernels, define
from .dispatch import choose, register, register_reference

_OP = "gather_units"


def gather_units(
    tensors: Sequence[Tensor],
    units: Sequence[Tensor | None],
    dims: Sequence[int],
    *,
    sizes: Sequence[int] | None = None,
    gates: Sequence[Tensor | None] | None = None,
    backend: str | None = None,
) -> list[Tensor]:
    """The part of every tensor that belongs to the chosen units, each times its unit's gate.

    Of a weight `(F, E)` whose rows are neurons, dims 0; of one `(E, H * D)` whose columns are heads of D, dims 1 and
    sizes D. `(h * c) W^T = h (W * c)^T`: so the gates of EarlyBERT (Chen et al., arXiv 2101.00063, section 3.1) go
    into the weight behind them, and a masked layer is a dense one on what this gathers. All tensors, of all layers of
    a model say, take one launch on backend `cuda`, and so do all their gradients.

    A backend that is forced for a whole process leaves to plain PyTorch what it cannot run of this op: models are cut
    wherever they are.

    Args:
        tensors: any shapes and dtypes, on one device.
        units: int64 `(k,)` of each tensor, in any order, no unit twice; None for all.
        dims: of each tensor, the dimension that its units lie along.
        sizes: the units' rows or columns there; default: 1.
        gates: float32 (or float64), one for every unit of the tensor, chosen or not; None for 1. Default: None.
        backend: one of `ops.backends("gather_units")`; default: the best that takes these tensors.

    Returns:
        A new contiguous tensor for each, of `k * size` rows or columns, in the tensor's dtype. Gradients of units that
        are not chosen are 0.

    Raises:
        ValueError: the lists differ in length, shapes do not fit together, or tensors are on several devices.
        TypeError: units are not int64, gates are in half precision, or a tensor with gates is not floating-point.
        IndexError: a tensor has no such dimension, or an index is outside the units (on the CPU).
        BackendUnavailableError: the backend that was asked for cannot run this call.
    """
    sizes = [1] * len(tensors) if sizes is None else sizes
    gates = [None] * len(tensors) if gates is None else gates
    if not len(tensors) == len(units) == len(dims) == len(sizes) == len(gates):
        raise ValueError(f"{_OP}: tensors, units, dims, sizes and gates have to be as many as each other")
    if not tensors:
        return []
    dims = [_dim(tensor, dim) for tensor, dim in zip(tensors, dims, strict=True)]
    for tensor, chosen, dim, size, own in zip(tensors, units, dims, sizes, gates, strict=True):
        _check(tensor, chosen, dim, size, own)
    given = [tensor for tensor in (*tensors, *units, *gates) if tensor is not None]
    if any(tensor.device != given[0].device for tensor in given):
        raise ValueError(f"{_OP}: all tensors must be on one device, got {sorted({str(t.device) for t in given})}")
    return choose(_OP, backend, *given)(tensors, units, dims, sizes, gates)


def _dim(tensor: Tensor, dim: int) -> int:
    if not -tensor.dim() <= dim < tensor.dim():
        raise IndexError(f"{_OP}: a tensor of shape {tuple(tensor.shape)} has no dimension {dim}")
    return dim % tensor.dim()


def _check(tensor: Tensor, units: Tensor | None, dim: int, size: int, gates: Tensor | None) -> None:
    if size < 1 or tensor.shape[dim] % size:
        raise ValueError(f"{_OP}: dimension {dim} of shape {tuple(tensor.shape)} is not made of units of {size}")
    total = tensor.shape[dim] // size
    if units is not None:
        if units.dtype != torch.int64:
            raise TypeError(f"{_OP}: units are {units.dtype}, expected torch.int64")
        check_active(_OP, "units", units, total)
        # Values are read on the CPU only: elsewhere that would make the host wait for the device.
        if units.device.type == "cpu" and not torch.compiler.is_compiling() and units.numel():
            least, largest = units.aminmax()
            if least < 0 or largest >= total:
                raise IndexError(f"{_OP}: units {int(least)} to {int(largest)} of a tensor that has {total}")
    check_gates(_OP, "gates", gates, total)
    if gates is not None and not tensor.is_floating_point():
        raise TypeError(f"{_OP}: a tensor with gates is {tensor.dtype}, expected a floating dtype")


# The dispatcher's side: lists hold only the units and gates that there are, and `units_of` and `gates_of` say where
# a tensor's are, -1 for none.


def _run_compiled(
    compiled: Callable[..., list[Tensor]],
    tensors: Sequence[Tensor],
    units: Sequence[Tensor | None],
    dims: Sequence[int],
    sizes: Sequence[int],
    gates: Sequence[Tensor | None],
) -> list[Tensor]:
    return compiled(list(tensors), *_listed(units), *_listed(gates), dims, list(sizes))


def _listed(tensors: Sequence[Tensor | None]) -> tuple[list[Tensor], list[int]]:
    present = [tensor for tensor in tensors if tensor is not None]
    numbers = iter(range(len(present)))
    return present, [-1 if tensor is None else next(numbers) for tensor in tensors]


def _of(tensors: Sequence[Tensor], numbers: Sequence[int]) -> list[Tensor | None]:
    return [None if number < 0 else tensors[number] for number in numbers]


def _kernels(backend: Backend) -> Kernels:
    gather, scatter = backend.function(_OP, "gather"), backend.function(_OP, "scatter")

    def forward(
        tensors: list[Tensor],
        units: list[Tensor],
        units_of: list[int],
        gates: list[Tensor],
        gates_of: list[int],
        dims: list[int],
        sizes: list[int],
    ) -> list[Tensor]:
        return gather(tensors, _of(units, units_of), dims, sizes, _of(gates, gates_of))

    def backward(
        grads: list[Tensor],
        tensors: list[Tensor],
        units: list[Tensor],
        units_of: list[int],
        gates: list[Tensor],
        gates_of: list[int],
        dims: list[int],
        sizes: list[int],
    ) -> list[Tensor]:
        own_gates = _of(gates, gates_of)
        weights = [None if own is None else tensor for tensor, own in zip(tensors, own_gates, strict=True)]
        shapes = [tensor.shape for tensor in tensors]
        results, sums = scatter(grads, shapes, _of(units, units_of), dims, sizes, own_gates, weights)
        return [*results, *(each for each in sums if each is not None)]

    return Kernels(Halves(forward, backward), Halves(_forward_shapes, _backward_shapes))


def _forward_shapes(
    tensors: list[Tensor],
    units: list[Tensor],
    units_of: list[int],
    gates: list[Tensor],
    gates_of: list[int],
    dims: list[int],
    sizes: list[int],
) -> list[Tensor]:
    results = []
    for tensor, chosen, dim, size in zip(tensors, _of(units, units_of), dims, sizes, strict=True):
        shape = list(tensor.shape)
        if chosen is not None:
            shape[dim] = chosen.shape[0] * size
        results.append(tensor.new_empty(shape))
    return results


def _backward_shapes(
    grads: list[Tensor],
    tensors: list[Tensor],
    units: list[Tensor],
    units_of: list[int],
    gates: list[Tensor],
    gates_of: list[int],
    dims: list[int],
    sizes: list[int],
) -> list[Tensor]:
    results = [tensor.new_empty(tensor.shape) for tensor in tensors]
    return results + [gates[number].new_empty(gates[number].shape) for number in gates_of if number >= 0]


def _save(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    tensors, units, ctx.units_of, gates, ctx.gates_of, ctx.dims, ctx.sizes = inputs
    ctx.counts = len(tensors), len(units), len(gates)
    ctx.mark_non_differentiable(*(part for part in output if not part.is_floating_point()))
    ctx.save_for_backward(*tensors, *units, *gates)


def _needed(ctx: Any, number: int) -> bool:
    needs_tensors, _, _, needs_gates, *_ = ctx.needs_input_grad
    return needs_tensors[number] or (ctx.gates_of[number] >= 0 and needs_gates[ctx.gates_of[number]])


def _gradients(ctx: Any, backward: Callable, grads: list[Tensor | None]) -> tuple:
    count, number_of_units, number_of_gates = ctx.counts
    saved = ctx.saved_tensors
    tensors, units, gates = saved[:count], saved[count : count + number_of_units], saved[count + number_of_units :]
    wanted = [number for number in range(count) if grads[number] is not None and _needed(ctx, number)]
    grad_tensors: list[Tensor | None] = [None] * count
    grad_gates: list[Tensor | None] = [None] * number_of_gates
    if wanted:
        lists: tuple[Sequence[Any], ...] = (grads, tensors, ctx.units_of, ctx.gates_of, ctx.dims, ctx.sizes)
        chosen_grads, chosen, units_of, gates_of, dims, sizes = ([each[n] for n in wanted] for each in lists)
        results = iter(backward(chosen_grads, chosen, units, units_of, gates, gates_of, dims, sizes))
        for number in wanted:
            grad_tensors[number] = next(results)
        for number in gates_of:
            if number >= 0:
                grad_gates[number] = next(results)
    return grad_tensors, [None] * number_of_units, None, grad_gates, None, None, None


_implementing = backends_with(_OP)
_compiled = define(
    _OP,
    (
        torch.library.infer_schema(_forward_shapes, mutates_args=()),
        torch.library.infer_schema(_backward_shapes, mutates_args=()),
    ),
    kernels={backend.name: _kernels(backend) for backend in _implementing},
    save=_save,
    gradients=_gradients,
)

register_reference(_OP, reference.gather_units, stands_in=True)
for _backend in _implementing:
    register(_OP, _backend, partial(_run_compiled, _compiled[_backend.name]))
