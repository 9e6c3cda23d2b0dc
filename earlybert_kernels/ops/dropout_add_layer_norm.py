"""Dropout, residual addition and layer norm in one pass over memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .. import reference
from ..backends import cpu, cuda, triton
from .checks import check_probability, check_same_device, check_shape
from .custom import Backend, Halves, define
from .dispatch import choose, register
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
        RuntimeError: the backend that was asked for cannot run this call.
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


# The dispatcher's side. With a seed, `counter_rng.keep_mask(seed, x.shape, dropout_p)` is kept.


def _shares_gradient(x: Tensor, residual: Tensor, seed: Tensor | None) -> bool:
    """Whether grad_x equals grad_residual, so that no kernel writes it a second time."""
    return seed is None and x.dtype == residual.dtype


def _backward_with(kernel):
    def run(grad_out, x, residual, weight, mean, rstd, seed, dropout_p):
        grad_x, *grads = kernel(grad_out, x, residual, weight, mean, rstd, seed, dropout_p)[:4]
        # A functional op may not return one tensor twice, so the absent one is empty.
        return (x.new_empty(0) if grad_x is None else grad_x, *grads)

    return run


def _forward_shapes(x, residual, weight, bias, seed, dropout_p, eps):
    statistics = x.new_empty(x.shape[:-1], dtype=torch.float32)
    return residual.new_empty(x.shape), statistics, torch.empty_like(statistics)


def _backward_shapes(grad_out, x, residual, weight, mean, rstd, seed, dropout_p):
    grad_x = x.new_empty(0) if _shares_gradient(x, residual, seed) else x.new_empty(x.shape)
    return grad_x, residual.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _save(ctx, inputs, output):
    x, residual, weight, _, seed, ctx.dropout_p, _ = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, residual, weight, mean, rstd, seed)


def _gradients(ctx, backward, grad_out, grad_mean, grad_rstd):
    x, residual, weight, mean, rstd, seed = ctx.saved_tensors
    grad_x, grad_residual, grad_weight, grad_bias = backward(
        grad_out, x, residual, weight, mean, rstd, seed, ctx.dropout_p
    )
    if _shares_gradient(x, residual, seed):
        grad_x = grad_residual
    return grad_x, grad_residual, grad_weight, grad_bias, None, None, None


_shapes = Halves(_forward_shapes, _backward_shapes)
_compiled = define(
    _OP,
    (
        "(Tensor x, Tensor residual, Tensor weight, Tensor bias, Tensor? seed, float dropout_p, float eps)"
        " -> (Tensor out, Tensor mean, Tensor rstd)",
        "(Tensor grad_out, Tensor x, Tensor residual, Tensor weight, Tensor mean, Tensor rstd, Tensor? seed,"
        " float dropout_p) -> (Tensor grad_x, Tensor grad_residual, Tensor grad_weight, Tensor grad_bias)",
    ),
    backends={
        backend: Backend(Halves(forward, _backward_with(backward)), _shapes)
        for backend, (forward, backward) in {
            "cpu": (cpu.dropout_add_layer_norm.forward, cpu.dropout_add_layer_norm.backward),
            "cuda": (cuda.dropout_add_layer_norm.forward, cuda.dropout_add_layer_norm.backward),
            "triton": triton.kernels(_OP),
        }.items()
    },
    save=_save,
    gradients=_gradients,
)

_run = {backend: partial(_run_compiled, compiled) for backend, compiled in _compiled.items()}
register(_OP, "reference", reference.dropout_add_layer_norm)
register(_OP, "cpu", _run["cpu"], unavailable=cpu.unavailable, refuses=cpu.refuses)
register(_OP, "cuda", _run["cuda"], **cuda.AVAILABILITY | {"refuses": cuda.dropout_add_layer_norm.refuses})
register(_OP, "triton", _run["triton"], **triton.AVAILABILITY)
