"""Gates folded into the weight behind them, and that weight's columns of the computed units, in one pass over it.

`(h * c) W^T = h (W * c)^T`: so a gate costs no pass over activations; its gradient is
`sum over o and its columns j of dW_folded[o, j] W[o, j]`, in the pass that writes the weight's gradient.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .units import Units

_ROWS, _COLUMNS = 64, 32


@triton.jit
def _fold(
    weight,
    gates,
    indices,
    folded,
    rows,
    columns,
    row_stride,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    unit = column // SIZE
    if indices is not None:
        unit = tl.load(indices + unit, inside, -1).to(tl.int32)
        inside &= unit >= 0
    in_rows = (row < rows)[:, None]
    source = weight + row[:, None] * row_stride + (unit * SIZE + column % SIZE)[None, :]
    value = tl.load(source, in_rows & inside[None, :], 0.0)  # 0 where -1 stands for none
    if gates is not None:
        value = value.to(tl.float32) * tl.load(gates + unit, inside, 0.0)[None, :]
    target = folded + row[:, None] * columns + column[None, :]
    tl.store(target, value.to(folded.dtype.element_ty), in_rows & (column < columns)[None, :])


@triton.jit
def _unfold(
    grad_folded,
    weight,
    gates,
    places,
    grad_weight,
    grad_columns,
    rows,
    columns,
    room,
    row_stride,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program has a few columns of the whole weight, and goes through all of its rows."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    unit = column // SIZE
    place = unit
    if places is not None:
        place = tl.load(places + unit, inside, -1).to(tl.int32)
    computed = inside & (place >= 0)
    source = place * SIZE + column % SIZE
    total = tl.zeros((COLUMNS,), tl.float32)
    gate = total + 1.0
    if gates is not None:
        gate = tl.load(gates + unit, computed, 0.0)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        taken = (row < rows)[:, None] & computed[None, :]
        grad = tl.load(grad_folded + row[:, None] * room + source[None, :], taken, 0.0).to(tl.float32)
        written = (row < rows)[:, None] & inside[None, :]
        target = grad_weight + row[:, None] * columns + column[None, :]
        tl.store(target, (grad * gate[None, :]).to(grad_weight.dtype.element_ty), written)
        if gates is not None:
            value = tl.load(weight + row[:, None] * row_stride + column[None, :], taken, 0.0).to(tl.float32)
            total += tl.sum(grad * value, 0)
    if gates is not None:
        tl.store(grad_columns + column, total, inside)


def fold(weight: Tensor, units: Units | None, gates: Tensor | None, size: int = 1) -> Tensor:
    """The computed units' columns of a weight, each times its unit's gate.

    Args:
        weight: `(E, units * size)`.
        units: the computed ones; None for all.
        gates: float32 `(units,)`, one for every unit, computed or not; None for 1.
        size: columns of a unit.

    Returns:
        `(E, room * size)`, contiguous, 0 where there is room for more units than are computed; or `weight` itself
        where nothing is to be done.
    """
    if units is None and gates is None:
        return weight
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    rows = weight.shape[0]
    columns = weight.shape[1] if units is None else units.room * size
    folded = torch.empty(rows, columns, dtype=weight.dtype, device=weight.device)
    grid = (triton.cdiv(rows, _ROWS), triton.cdiv(columns, _COLUMNS))
    indices = None if units is None else units.indices
    launch(
        _fold, grid, weight, gates, indices, folded, rows, columns, weight.stride(0), SIZE=size, ROWS=_ROWS,
        COLUMNS=_COLUMNS,
    )  # fmt: skip
    return folded


def unfold(
    grad_folded: Tensor, weight: Tensor, units: Units | None, gates: Tensor | None, size: int = 1
) -> tuple[Tensor, Tensor]:
    """The gradients of `fold`'s weight and gates, 0 for units that are not computed.

    Args:
        grad_folded: `(E, room * size)`, contiguous; what it holds for none is not read.
        weight, units, gates, size: as in `fold`.

    Returns:
        `(E, units * size)`, and float32 `(units,)`, or `(0,)` without gates.
    """
    if units is None and gates is None:
        return grad_folded, torch.empty(0, dtype=torch.float32, device=weight.device)
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    rows, columns = weight.shape
    grad_weight = torch.empty(rows, columns, dtype=weight.dtype, device=weight.device)
    grad_columns = torch.empty(0 if gates is None else columns, dtype=torch.float32, device=weight.device)
    launch(
        _unfold, (triton.cdiv(columns, _COLUMNS),), grad_folded, weight, gates, _places(units, columns // size),
        grad_weight, grad_columns, rows, columns, grad_folded.shape[1], weight.stride(0), SIZE=size, ROWS=_ROWS,
        COLUMNS=_COLUMNS,
    )  # fmt: skip
    return grad_weight, grad_columns.view(-1, size).sum(1)


def _places(units: Units | None, total: int) -> Tensor | None:
    """Where each of all units stands among the computed ones, -1 for those that are not; None if all are."""
    if units is None:
        return None
    order = torch.arange(units.room, device=units.indices.device)
    rows = units.indices if units.number is None else torch.where(units.indices < 0, total, units.indices)
    return order.new_full((total + 1,), -1).index_copy_(0, rows, order)[:total]
