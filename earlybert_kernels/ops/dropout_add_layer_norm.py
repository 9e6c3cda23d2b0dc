"""Dropout, residual addition and layer norm in one pass over memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..backends.arguments import (
    DropoutAddLayerNormGrads,
    DropoutAddLayerNormInputs,
    DropoutAddLayerNormResults,
    DropoutAddLayerNormSaved,
)
from ..backends.backend import Backend
from .checks import check_probability, check_same_device, check_shape
from .custom import Halves
from .declare import Arguments, declare
from .dispatch import choose
from .seeds import draw_seed

_OP = "dropout_add_layer_norm"


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    dropout_p: float = 0.0,
    eps: float = 1e-12,
    backend: str | None = None,
) -> Tensor:
    """`LayerNorm(residual + dropout(x)) * weight + bias` over the last dimension.

    This is how each sublayer of BERT ends (Devlin et al., arXiv 1810.04805). The compiled backends keep
    float32 statistics, store no dropout mask and regenerate it in backward from a seed, which comes from
    torch's generator: `torch.manual_seed` reproduces it and gradient checkpointing replays it.

    Args:
        x: `(..., E)`, any floating dtype: a sublayer's output.
        residual: the same shape, any floating dtype: the sublayer's input.
        weight, bias: `(E,)`, any floating dtype.
        dropout_p: probability of dropping an element of x, the kept ones being scaled by 1 / (1 - p), to within
            2^-16 (`reference.counter_rng`). Applied whenever it is above 0, so pass 0 to evaluate.
        eps: added to the variance; BERT's is 1e-12.
        backend: one of `ops.backends("dropout_add_layer_norm")`; default: the best that takes these tensors.
            `cpu` takes float32; `cuda` takes float32, float16 and bfloat16, E up to 8192.

    Returns:
        `(..., E)` in the dtype that x and residual promote to.

    Raises:
        ValueError: shapes, devices or probabilities do not fit together.
        TypeError: a tensor is not floating-point.
        BackendUnavailableError: the backend that was asked for cannot run this call.
    """
    if x.dim() < 1 or x.shape[-1] == 0:
        raise ValueError(f"{_OP}: x has shape {tuple(x.shape)}, expected (..., hidden size)")
    check_shape(_OP, "residual", residual, tuple(x.shape), "the shape of x")
    check_shape(_OP, "weight", weight, (x.shape[-1],), f"({x.shape[-1]},), one entry a column of x")
    check_shape(_OP, "bias", bias, (x.shape[-1],), f"({x.shape[-1]},), one entry a column of x")
    for name, tensor in (("x", x), ("residual", residual), ("weight", weight), ("bias", bias)):
        if not tensor.is_floating_point():
            raise TypeError(f"{_OP}: {name} is {tensor.dtype}, expected a floating dtype")
    check_probability(_OP, "dropout_p", dropout_p)
    check_same_device(_OP, x=x, residual=residual, weight=weight, bias=bias)
    run = choose(_OP, backend, x, residual, weight, bias, size=x.numel() // x.shape[-1])
    return run(x, residual, weight, bias, dropout_p=dropout_p, eps=eps)


def _run_compiled(
    compiled: Callable[..., tuple[Tensor, ...]],
    backend: Backend,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    dropout_p: float,
    eps: float,
) -> Tensor:
    # The kernels take (x, residual) of one dtype or a float32 residual, and parameters of residual's dtype
    # or float32. Anything else is cast here, where autograd sees it.
    residual = residual.to(torch.promote_types(x.dtype, residual.dtype))
    if weight.dtype != bias.dtype or weight.dtype != residual.dtype or x.dtype != residual.dtype:
        weight, bias = weight.float(), bias.float()
    return compiled(x, residual, weight, bias, draw_seed(dropout_p, x.device), dropout_p, eps)[0]


def _shares_gradient(own: DropoutAddLayerNormSaved) -> bool:
    """Whether the gradient of x equals the residual's, so that no kernel writes it a second time."""
    return own.seed is None and own.x.dtype == own.residual.dtype


def _kernels(backend: Backend) -> Halves:
    forward_kernel, kernel = backend.halves(_OP)

    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return forward_kernel(*inputs)[:3]

    def backward(grad_out: Tensor, x: Tensor, *saved: Any) -> tuple[Tensor, ...]:
        grad_x, *grads = kernel(grad_out, x, *saved)[:4]
        # A functional op may not return one tensor twice, so the absent one is empty.
        return (x.new_empty(0) if grad_x is None else grad_x, *grads)

    return Halves(forward, backward)


def _complete(saved: DropoutAddLayerNormSaved, grads: DropoutAddLayerNormGrads) -> DropoutAddLayerNormGrads:
    return grads._replace(x=grads.residual) if _shares_gradient(saved) else grads


def _shapes(backend: Backend) -> Halves:
    def forward(inputs: DropoutAddLayerNormInputs) -> DropoutAddLayerNormResults:
        x = inputs.x
        statistics = x.new_empty(x.shape[:-1], dtype=torch.float32)
        return DropoutAddLayerNormResults(inputs.residual.new_empty(x.shape), statistics, torch.empty_like(statistics))

    def backward(grad_out: Tensor, saved: DropoutAddLayerNormSaved) -> DropoutAddLayerNormGrads:
        x, weight = saved.x, saved.weight
        return DropoutAddLayerNormGrads(
            x.new_empty(0) if _shares_gradient(saved) else x.new_empty(x.shape),
            saved.residual.new_empty(x.shape),
            weight.new_empty(weight.shape),
            weight.new_empty(weight.shape),
        )

    return Halves(forward, backward)


declare(
    _OP,
    Arguments(
        DropoutAddLayerNormInputs, DropoutAddLayerNormResults, DropoutAddLayerNormSaved, DropoutAddLayerNormGrads
    ),
    reference=reference.dropout_add_layer_norm,
    run=_run_compiled,
    shapes=_shapes,
    kernels=_kernels,
    complete=_complete,
)
