"""Calls the kernels of dropout, residual addition and layer norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import address
from . import empty, extension, run


def forward(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    dropout_p: float,
    eps: float,
    saves: bool = True,
) -> tuple[Tensor, Any, Any]:
    """`out (..., E)`, and, None unless `saves`, `mean (...)` and `rstd (...)`; see `ops.dropout_add_layer_norm`."""
    x, residual, weight, bias = x.contiguous(), residual.contiguous(), weight.contiguous(), bias.contiguous()
    out = torch.empty_like(x)
    mean, rstd = (empty(x.shape[:-1]) if saves else None for _ in range(2))
    run(
        extension.dropout_add_layer_norm_forward,
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
        address(mean),
        address(rstd),
    )
    return out, mean, rstd


def backward(
    grad_out: Tensor,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    seed: Tensor | None,
    dropout_p: float,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """`grad_x` (None without a seed: it is `grad_residual`), `grad_residual`, `grad_weight`, `grad_bias`."""
    grad_out, x, residual, weight = (t.contiguous() for t in (grad_out, x, residual, weight))
    grad_x = None if seed is None else torch.empty_like(x)
    grad_residual = torch.empty_like(x)
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(weight)
    run(
        extension.dropout_add_layer_norm_backward,
        mean.numel(),
        x.shape[-1],
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
        grad_weight.data_ptr(),
        grad_bias.data_ptr(),
    )
    return grad_x, grad_residual, grad_weight, grad_bias
