"""Activations over whole tensors, behind or in front of a product that the vendor's library computes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import activate, activate_with_slope
from .launch import launch

# Rows and columns of a program in backward, and elements of one in forward.
_ROWS, _COLUMNS, _ELEMENTS = 64, 128, 2048


@triton.jit(do_not_specialize=["elements"])
def _forward(x, y, elements, ACTIVATION: tl.constexpr, BY_16: tl.constexpr, BLOCK: tl.constexpr):
    if BY_16:
        elements = elements // 16 * 16  # as it is, which the compiler is to know
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < elements
    value = activate(tl.load(x + offsets, inside, 0.0).to(tl.float32), ACTIVATION)
    tl.store(y + offsets, value.to(y.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["rows"])
def _backward(
    grad, x, y, column_sums, rows, columns, ACTIVATION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    place = row.to(tl.int64)[:, None] * columns + column[None, :]
    after, slope = activate_with_slope(tl.load(x + place, inside, 0.0).to(tl.float32), ACTIVATION)
    value = tl.load(grad + place, inside, 0.0).to(tl.float32) * slope
    tl.store(y + place, after.to(y.dtype.element_ty), inside)
    tl.store(grad + place, value.to(grad.dtype.element_ty), inside)
    tl.store(column_sums + tl.program_id(0) * columns + column, tl.sum(value, 0), column < columns)


def activation_forward(x: Tensor, activation: str) -> Tensor:
    """The activation of x, which is contiguous; `activation` is a name of `reference.feed_forward.ACTIVATIONS`."""
    y = torch.empty_like(x)
    grid = (triton.cdiv(x.numel(), _ELEMENTS),)
    by_16 = x.shape[-1] % 16 == 0
    launch(_forward, grid, x, y, x.numel(), ACTIVATION=activation, BY_16=by_16, BLOCK=_ELEMENTS, num_warps=4)
    return y


def activation_backward(grad: Tensor, x: Tensor, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of x from that of its activation.

    Args:
        grad: `(T, F)`, contiguous; the result is written over it.
        x: `(T, F)`, contiguous.
        activation: as in `activation_forward`.

    Returns:
        `grad`, the activation of x, and the sums of `grad` over its rows `(F,)`, float32.
    """
    rows, columns = x.shape
    y = torch.empty_like(x)
    grid = (triton.cdiv(rows, _ROWS), triton.cdiv(columns, _COLUMNS))
    sums = torch.empty(grid[0], columns, dtype=torch.float32, device=x.device)
    launch(
        _backward, grid, grad, x, y, sums, rows, columns, ACTIVATION=activation, ROWS=_ROWS, COLUMNS=_COLUMNS,
        num_warps=8,
    )  # fmt: skip
    return grad, y, sums.sum(0)
