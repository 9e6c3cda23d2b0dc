"""What this backend's sublayers are composed of."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import cuda, vendor
from ..sublayers import Parts
from . import attention, dropout_add_layer_norm, feed_forward, fold, units

PARTS = Parts(attention, dropout_add_layer_norm, feed_forward, vendor, units, fold)


def refuses(x: Tensor, weight: Tensor, norm_weight: Tensor, norm_bias: Tensor, *others: Tensor | None) -> str | None:
    """Why a sublayer cannot take its input, one of its linear layers' weights, its norm and other tensors, or None."""
    block = cuda.product_dtype(weight)
    if x.dtype not in (block, torch.float32):
        return f"it takes an input in the dtype of the products, {block}, or in float32, got {x.dtype}"
    if norm_weight.dtype != norm_bias.dtype or norm_weight.dtype not in (x.dtype, torch.float32):
        return f"it takes a norm in the input's dtype, {x.dtype}, or in float32, got {norm_weight.dtype}"
    reason = dropout_add_layer_norm.refuses(x, x, norm_weight, norm_bias)
    return reason or units.refuses(weight, *others)
