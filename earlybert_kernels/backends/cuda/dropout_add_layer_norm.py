"""Dropout, residual addition and layer norm by the CUDA extension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import address, cuda

#: The widest row that the kernels of a layer norm take.
MAX_COLS = 0 if cuda.extension is None else cuda.extension.LAYER_NORM_MAX_COLS


def refuses(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    """Why these tensors cannot be taken (device, dtype, size), or None."""
    if {x.dtype, residual.dtype} == {torch.float16, torch.bfloat16}:
        return f"it takes no mixture of {x.dtype} and {residual.dtype}"
    if x.shape[-1] > MAX_COLS:
        return f"it takes rows of up to {MAX_COLS} values, got {x.shape[-1]}"
    return cuda.refuses(x, residual, weight, bias)


def forward(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    dropout_p: float,
    eps: float,
    saves: bool = True,
    *,
    cast_out: bool = False,
) -> tuple[Tensor, Any, Any, Tensor | None]:
    """`out (..., E)` of residual's dtype, `mean (...)` and `rstd (...)`, float32, None unless `saves`, and `out` in x's
    dtype, written along (None where that is its own or `cast_out` is False).

    The dtypes of (x and) residual are (T or) float32; `weight` and `bias` are of residual's dtype or float32.
    """
    x, residual, weight, bias = x.contiguous(), residual.contiguous(), weight.contiguous(), bias.contiguous()
    out = torch.empty_like(residual)
    out_cast = torch.empty_like(x) if cast_out and x.dtype != residual.dtype else None
    mean, rstd = (torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device) if saves else None for _ in range(2))
    cuda.extension.dropout_add_layer_norm_forward(
        *cuda.launch(x),
        cuda.code(x),
        cuda.code(residual),
        cuda.code(weight),
        x.numel() // x.shape[-1],
        x.shape[-1],
        x.data_ptr(),
        residual.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        address(seed),
        dropout_p,
        eps,
        out.data_ptr(),
        address(out_cast),
        address(mean),
        address(rstd),
    )
    return out, mean, rstd, out_cast


def backward(
    grad_out: Tensor,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    seed: Tensor | None,
    dropout_p: float,
    *,
    cast_residual: bool = False,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """`grad_x` (None where it equals `grad_residual`), `grad_residual`, `grad_weight`, `grad_bias`, `grad_x_columns`,
    and `residual` in x's dtype (None where that is another and `cast_residual` is False).

    `grad_x_columns`, `(E,)` of x's dtype, are the column sums of grad_x before it is rounded: the gradient of the bias
    of a linear layer whose result x is. Neither they nor the cast residual need a pass of their own.
    """
    grad_out, x, residual, weight = (t.contiguous() for t in (grad_out, x, residual, weight))
    rows, cols = mean.numel(), x.shape[-1]
    same = x.dtype == residual.dtype
    grad_x = None if seed is None and same else torch.empty_like(x)
    grad_residual = torch.empty_like(residual)
    residual_cast = torch.empty_like(x) if cast_residual and not same else None
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(weight)
    grad_x_columns = torch.empty(cols, dtype=x.dtype, device=x.device)
    partials = torch.empty(
        3, cuda.extension.layer_norm_partials(rows, cols), cols, dtype=torch.float32, device=x.device
    )
    cuda.extension.dropout_add_layer_norm_backward(
        *cuda.launch(x),
        cuda.code(x),
        cuda.code(residual),
        cuda.code(weight),
        rows,
        cols,
        grad_out.data_ptr(),
        x.data_ptr(),
        residual.data_ptr(),
        weight.data_ptr(),
        mean.data_ptr(),
        rstd.data_ptr(),
        address(seed),
        dropout_p,
        address(grad_x),
        grad_residual.data_ptr(),
        address(residual_cast),
        grad_weight.data_ptr(),
        grad_bias.data_ptr(),
        grad_x_columns.data_ptr(),
        partials.data_ptr(),
    )
    return grad_x, grad_residual, grad_weight, grad_bias, grad_x_columns, residual if same else residual_cast
