"""Dropout, residual addition and layer norm, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .counter_rng import kept_scale


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    dropout_p: float = 0.0,
    eps: float = 1e-12,
    keep: Tensor | None = None,
) -> Tensor:
    """The definition of `ops.dropout_add_layer_norm`, which documents the arguments.

    Arithmetic is in the dtype that x, residual and float32 promote to; the result is in the one that x and
    residual promote to.

    Args:
        keep: bool, of x's shape: the elements that dropout keeps. Default: drawn by `F.dropout`.
    """
    result = torch.promote_types(x.dtype, residual.dtype)
    compute = torch.promote_types(result, torch.float32)
    x, residual, weight, bias = x.to(compute), residual.to(compute), weight.to(compute), bias.to(compute)
    dropped = F.dropout(x, dropout_p) if keep is None else x * keep * kept_scale(dropout_p)
    return F.layer_norm(residual + dropped, x.shape[-1:], weight, bias, eps).to(result)
