"""The computed units' part of a weight, and the reverse.

Units are int64 `(k,)`, no unit twice, or None for all. What is no unit (-1, say) chooses none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import cuda
from . import gather_units


def refuses(*tensors: Tensor | None) -> str | None:
    """Why an op on a layer's units cannot take these tensors (device, dtype, a mask), or None."""
    if any(tensor is not None and tensor.dtype == torch.bool for tensor in tensors):
        return "it takes active units as int64 indices; a mask, which only the device knows, the triton backend follows"
    return cuda.refuses(*tensors)


def computed_units(active: Tensor | None) -> Tensor | None:
    """The units of int64 indices: those themselves."""
    return active


def used(units: Tensor | None, size: int = 1) -> None:
    """What only the device knows of how many units there are: nothing."""


def present(units: Tensor | None) -> None:
    """Which of the units are there, where only the device knows: all are."""


def take(weight: Tensor, units: Tensor | None) -> Tensor:
    """The computed units' part of a weight or bias `(units, ...)`; 0 where none is chosen."""
    return weight if units is None else gather_units.gather([weight], [units], [0], [1], [None])[0]


def put(part: Tensor, units: Tensor | None, total: int) -> Tensor:
    """The reverse of `take`: `(total, ...)`, 0 where a unit is not computed, whatever `part` holds for none."""
    return put_each((part, 0), units=units, total=total)[0]


def take_each(*tensors: tuple[Tensor | None, int], units: Tensor | None) -> list[Any]:
    """`take` from several tensors in one launch, each given with the dimension that units lie along; None stays."""
    there = [(tensor, dim) for tensor, dim in tensors if tensor is not None]
    if units is None or not there:
        return [tensor for tensor, _ in tensors]
    given, dims = zip(*there, strict=True)
    count = len(given)
    taken = iter(gather_units.gather(given, [units] * count, dims, [1] * count, [None] * count))
    return [None if tensor is None else next(taken) for tensor, _ in tensors]


def put_each(*parts: tuple[Tensor, int], units: Tensor | None, total: int) -> list[Tensor]:
    """The reverse of `take_each`, of tensors that are there."""
    given, dims = zip(*parts, strict=True)
    if units is None:
        return list(given)
    shapes = [(*part.shape[:dim], total, *part.shape[dim + 1 :]) for part, dim in parts]
    count = len(given)
    return gather_units.scatter(given, shapes, [units] * count, dims, [1] * count, [None] * count, [None] * count)[0]
