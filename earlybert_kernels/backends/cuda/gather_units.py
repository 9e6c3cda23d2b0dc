"""The chosen units' parts of many tensors in one launch, and the way back, by the CUDA extension."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import address, cuda


def refuses(*tensors: Tensor | None) -> str | None:
    """Why these tensors cannot be taken (device, dtype, size of an element), or None."""
    for tensor in tensors:
        if tensor is not None and tensor.element_size() > 8:
            return f"it takes elements of up to 8 bytes, got {tensor.dtype}"
    return cuda.refuses(*tensors)


def gather(
    tensors: Sequence[Tensor],
    units: Sequence[Tensor | None],
    dims: Sequence[int],
    sizes: Sequence[int],
    gates: Sequence[Tensor | None],
) -> list[Tensor]:
    """The chosen units' part of every tensor, contiguous, times the gates.

    Args:
        tensors: of any dtype; with gates float32, float16 or bfloat16.
        units: int64 `(k,)` of each tensor, no unit twice, 0 in the result for what is no unit; None for all.
        dims: the dimension that the units lie along, 0 or more.
        sizes: rows or columns of a unit.
        gates: float32, one for every unit of the tensor; None for 1.
    """
    results, calls = [], []
    kept: list[Tensor | None] = []  # until the launch
    for tensor, chosen, dim, size, own in zip(tensors, units, dims, sizes, gates, strict=True):
        shape = list(tensor.shape)
        if chosen is not None:
            shape[dim] = chosen.shape[0] * size
        result = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
        tensor, (chosen, own) = tensor.contiguous(), _contiguous(chosen, own)
        kept += tensor, chosen, own
        calls.append(_fields(tensor.shape, dim, size, chosen, own, tensor, result))
        results.append(result)
    _launch(cuda.extension.gather_units, tensors, calls)
    return results


def scatter(
    parts: Sequence[Tensor],
    shapes: Sequence[Sequence[int]],
    units: Sequence[Tensor | None],
    dims: Sequence[int],
    sizes: Sequence[int],
    gates: Sequence[Tensor | None],
    weights: Sequence[Tensor | None],
) -> tuple[list[Tensor], list[Tensor | None]]:
    """The gradients of `gather`'s tensors, 0 for units that are not chosen, and of the gates, float32; None without.

    Args:
        parts: the gradients of its results.
        shapes: of its tensors.
        units, dims, sizes, gates: as in `gather`.
        weights: its tensors, where there are gates.
    """
    results, sums, calls = [], [], []
    kept: list[Tensor | None] = []  # until the launch
    for part, shape, chosen, dim, size, own, weight in zip(
        parts, shapes, units, dims, sizes, gates, weights, strict=True
    ):
        result = torch.empty(shape, dtype=part.dtype, device=part.device)
        grad_gates = None if own is None else torch.empty(own.shape, dtype=torch.float32, device=part.device)
        part, (chosen, own, weight) = part.contiguous(), _contiguous(chosen, own, weight)
        kept += part, chosen, own, weight
        calls.append(_fields(shape, dim, size, chosen, own, part, result, weight, grad_gates))
        results.append(result)
        sums.append(grad_gates)
    _launch(cuda.extension.scatter_units, parts, calls)
    return results, sums


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _fields(
    shape: Sequence[int],
    dim: int,
    size: int,
    units: Tensor | None,
    gates: Tensor | None,
    read: Tensor,
    written: Tensor,
    weight: Tensor | None = None,
    grad_gates: Tensor | None = None,
) -> tuple[int, ...]:
    """The fields of csrc/cuda/gather_units.h, in their order; `shape` is that of all units."""
    total = shape[dim] // size
    return (
        math.prod(shape[:dim]),
        total,
        total if units is None else units.shape[0],
        size * math.prod(shape[dim + 1 :]),
        read.element_size(),
        0 if gates is None else cuda.code(read),
        address(units),
        address(gates),
        read.data_ptr(),
        written.data_ptr(),
        address(weight),
        address(grad_gates),
    )


def _launch(function: Callable[..., None], tensors: Sequence[Tensor], calls: list[tuple[int, ...]]) -> None:
    if calls:
        function(*cuda.launch(tensors[0]), calls)
