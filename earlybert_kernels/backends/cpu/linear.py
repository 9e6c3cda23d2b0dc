"""Calls the kernels of a linear layer on kept units, with an activation behind it or in front of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ACTIVATIONS, address
from . import empty, extension, place, run


class Kept(NamedTuple):
    """The part of a weight `(out, in)` that is computed, and the scale of its columns.

    Attributes:
        weight: the whole of it.
        out_units, in_units: int64 indices of the kept rows and columns; None for all.
        in_scale: float32, one factor a kept column; None for 1.
        bfloat16: whether what products take is rounded to bfloat16.
    """

    weight: Tensor
    out_units: Tensor | None = None
    in_units: Tensor | None = None
    in_scale: Tensor | None = None
    bfloat16: bool = False

    def prepared(self) -> Kept:
        """The same with rows of the weight contiguous, and contiguous indices and scales."""
        weight = self.weight if self.weight.stride(1) == 1 else self.weight.contiguous()
        units, columns, scale = (None if t is None else t.contiguous() for t in self[1:4])
        return Kept(weight, units, columns, scale, self.bfloat16)

    def arguments(self, tokens: int, x: Tensor | None, x_rows: Tensor | None) -> tuple:
        """The first arguments of the extension's functions; a prepared self has to live until they return."""
        rows, columns = self.weight.shape
        out = rows if self.out_units is None else len(self.out_units)
        size = columns if self.in_units is None else len(self.in_units)
        of_x = (0, 0) if x is None else (x.shape[0], x.stride(0))
        sizes = (tokens, size, out, *of_x, rows, self.weight.stride(0), columns)
        picks = (address(x_rows), address(self.out_units), address(self.in_units), address(self.in_scale))
        return sizes, place(x), self.weight.data_ptr(), picks, self.bfloat16


def _rows(x: Tensor) -> Tensor:
    """The same with each row contiguous."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def forward(
    x: Tensor,
    kept: Kept,
    bias: Tensor | None,
    *,
    x_rows: Tensor | None = None,
    activation: str = "none",
    dtype: torch.dtype = torch.float32,
    saves: bool = True,
) -> tuple[Tensor, Any]:
    """`activation((x * in_scale) weight^T + bias)` on the kept units.

    Args:
        x: `(T, kept columns)`, float32 or bfloat16.
        kept: the weight.
        bias: of all rows of the weight, or None.
        x_rows: int64, the rows of x to take; None for all.
        activation: "none" or a name of `reference.feed_forward.ACTIVATIONS`.
        dtype: of the results, float32 or bfloat16.
        saves: whether to write what the activation is applied to.

    Returns:
        `(tokens, kept rows)`, and what the activation was applied to, the same shape (None without one, or unless
        `saves`).
    """
    x, kept, bias = _rows(x), kept.prepared(), None if bias is None else bias.contiguous()
    x_rows = None if x_rows is None else x_rows.contiguous()
    tokens = x.shape[0] if x_rows is None else len(x_rows)
    arguments = kept.arguments(tokens, x, x_rows)
    out = arguments[0][2]
    y = torch.empty(tokens, out, dtype=dtype)
    preactivation = torch.empty_like(y) if saves and activation != "none" else None
    code = ACTIVATIONS.index(activation)
    run(extension.linear_forward, *arguments, address(bias), code, place(preactivation), place(y), out)
    return y, preactivation


def backward(
    grad_y: Tensor,
    x: Tensor | None,
    kept: Kept,
    *,
    x_rows: Tensor | None = None,
    grad_x: Tensor | None = None,
    activation: str = "none",
    preactivation: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Any]:
    """The gradients of `forward`'s x, weight, bias and in_scale (None without one).

    Args:
        grad_y: `(tokens, kept rows)`, float32 or bfloat16.
        x: as in forward; None with an activation.
        kept: the weight.
        x_rows: as in forward; the gradient of x is then that of the picked rows.
        grad_x: float32, contiguous; the gradient of x is added to it. None for a new one, of x's dtype. Not with an
            activation.
        activation: what x came out of, in place of x: the first result is then the gradient of `preactivation`.
        preactivation: `(tokens, kept columns)`, float32 or bfloat16, which is then the dtype of its gradient.
    """
    grad_y, kept = _rows(grad_y), kept.prepared()
    x, x_rows = None if x is None else _rows(x), None if x_rows is None else x_rows.contiguous()
    arguments = kept.arguments(grad_y.shape[0], x, x_rows)
    size = arguments[0][1]
    accumulate = grad_x is not None
    if grad_x is None:
        like = x if preactivation is None else preactivation
        grad_x = torch.empty(grad_y.shape[0], size, dtype=torch.float32 if like is None else like.dtype)
    grad_weight, grad_bias = empty(kept.weight.shape), empty(kept.weight.shape[0])
    grad_in_scale = None if kept.in_scale is None else empty(size)
    run(
        extension.linear_backward,
        *arguments,
        place(grad_y),
        grad_y.stride(0),
        place(grad_x),
        grad_x.stride(0),
        accumulate,
        ACTIVATIONS.index(activation),
        place(preactivation),
        grad_weight.data_ptr(),
        grad_bias.data_ptr(),
        address(grad_in_scale),
    )
    return grad_x, grad_weight, grad_bias, grad_in_scale
