"""Calls the CUDA extension `earlybert_kernels._cuda`: tensors in, tensors out, on torch's current stream.

Importing this loads the extension but touches no GPU and needs no driver.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import address, load_extension

extension, missing = load_extension("_cuda")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_CODES = {} if extension is None else {getattr(torch, name): code for name, code in extension.DTYPES.items()}
_MAX_COLS = 0 if extension is None else extension.DROPOUT_ADD_LAYER_NORM_MAX_COLS


def unavailable() -> str | None:
    """Why no op can run on this backend in this process, or None."""
    if missing is not None:
        return missing
    return None if torch.cuda.is_available() else "torch sees no CUDA GPU"


def refuses(*tensors: Tensor | None) -> str | None:
    """Why these tensors cannot be taken (device, dtype), or None."""
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != "cuda":
            return f"it takes CUDA tensors, got one on {tensor.device}"
        if tensor.dtype not in DTYPES:
            return f"it takes float32, float16 and bfloat16 tensors, got {tensor.dtype}"
    return None


def dropout_add_layer_norm_refuses(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    """As `refuses`, for `ops.dropout_add_layer_norm`."""
    if {x.dtype, residual.dtype} == {torch.float16, torch.bfloat16}:
        return f"it takes no mixture of {x.dtype} and {residual.dtype}"
    if x.shape[-1] > _MAX_COLS:
        return f"it takes rows of up to {_MAX_COLS} values, got {x.shape[-1]}"
    return refuses(x, residual, weight, bias)


def _launch(x: Tensor) -> tuple[int, int]:
    """The device's index and its current stream's address."""
    return x.get_device(), torch.cuda.current_stream(x.device).cuda_stream


def dropout_add_layer_norm_forward(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    dropout_p: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`out (..., E)` of residual's dtype, `mean (...)` and `rstd (...)`, float32.

    The dtypes of (x and) residual are (T or) float32; `weight` and `bias` are of residual's dtype or float32.
    """
    x, residual, weight, bias = x.contiguous(), residual.contiguous(), weight.contiguous(), bias.contiguous()
    out = torch.empty_like(residual)
    mean = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    with torch.cuda.device_of(x):
        extension.dropout_add_layer_norm_forward(
            *_launch(x),
            _CODES[x.dtype],
            _CODES[residual.dtype],
            _CODES[weight.dtype],
            mean.numel(),
            x.shape[-1],
            x.data_ptr(),
            residual.data_ptr(),
            weight.data_ptr(),
            bias.data_ptr(),
            address(seed),
            dropout_p,
            eps,
            out.data_ptr(),
            mean.data_ptr(),
            rstd.data_ptr(),
        )
    return out, mean, rstd


def dropout_add_layer_norm_backward(
    grad_out: Tensor,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    seed: Tensor | None,
    dropout_p: float,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """`grad_x` (None where it equals `grad_residual`), `grad_residual`, `grad_weight`, `grad_bias`."""
    grad_out, x, residual, weight = (t.contiguous() for t in (grad_out, x, residual, weight))
    rows, cols = mean.numel(), x.shape[-1]
    grad_x = None if seed is None and x.dtype == residual.dtype else torch.empty_like(x)
    grad_residual = torch.empty_like(residual)
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(weight)
    partials = torch.empty(
        extension.dropout_add_layer_norm_partials(rows, cols), 2, cols, dtype=torch.float32, device=x.device
    )
    with torch.cuda.device_of(x):
        extension.dropout_add_layer_norm_backward(
            *_launch(x),
            _CODES[x.dtype],
            _CODES[residual.dtype],
            _CODES[weight.dtype],
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
            grad_weight.data_ptr(),
            grad_bias.data_ptr(),
            partials.data_ptr(),
        )
    return grad_x, grad_residual, grad_weight, grad_bias
