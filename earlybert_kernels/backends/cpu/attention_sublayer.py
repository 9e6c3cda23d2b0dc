"""The attention sublayer: projections, attention, output projection, dropout, the residual and the layer norm."""

from __future__ import annotations

import torch
from torch import Tensor

from ...units import head_rows, per_column
from . import attention, dropout_add_layer_norm, empty, linear
from .linear import Kept


def _units(active_heads: Tensor | None, head_gates: Tensor | None, size: int) -> tuple[Tensor | None, Tensor | None]:
    """The projections' kept rows, and the scale of each of the output projection's kept columns."""
    units = None if active_heads is None else head_rows(active_heads, size)
    if head_gates is None:
        return units, None
    return units, per_column(head_gates if active_heads is None else head_gates.index_select(0, active_heads), size)


def _queries(cu_seqlens: Tensor, max_seqlen: int, first_token_only: bool) -> tuple[Tensor | None, Tensor, int]:
    """The rows that ask, or None for all; where each sequence's queries are, and the most of one sequence."""
    if not first_token_only:
        return None, cu_seqlens, max_seqlen
    return cu_seqlens[:-1].long(), torch.arange(len(cu_seqlens), dtype=torch.int32), 1


def forward(
    x: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    w_q: Tensor,
    b_q: Tensor,
    w_k: Tensor,
    b_k: Tensor,
    w_v: Tensor,
    b_v: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    active_heads: Tensor | None,
    head_gates: Tensor | None,
    attention_seed: Tensor | None,
    seed: Tensor | None,
    head_size: int,
    first_token_only: bool,
    attention_dropout_p: float,
    dropout_p: float,
    eps: float,
) -> tuple[Tensor, ...]:
    """The output, and for backward: q, k, v, context, logsumexp, the block's output, the norm's mean and rstd."""
    units, scale = _units(active_heads, head_gates, head_size)
    rows, cu_seqlens_q, max_seqlen_q = _queries(cu_seqlens, max_seqlen, first_token_only)
    q, _ = linear.forward(x, Kept(w_q, out_units=units), b_q, x_rows=rows)
    k, _ = linear.forward(x, Kept(w_k, out_units=units), b_k)
    v, _ = linear.forward(x, Kept(w_v, out_units=units), b_v)
    q, k, v = (t.view(t.shape[0], t.shape[1] // head_size, head_size) for t in (q, k, v))
    context, logsumexp = attention.forward(
        q, k, v, cu_seqlens, max_seqlen, cu_seqlens_q, max_seqlen_q, None, None, attention_seed, attention_dropout_p,
        head_size**-0.5,
    )  # fmt: skip
    h, _ = linear.forward(context.flatten(1), Kept(w_out, in_units=units, in_scale=scale), b_out)
    residual = x if rows is None else x.index_select(0, rows)
    out, mean, rstd = dropout_add_layer_norm.forward(h, residual, norm_weight, norm_bias, seed, dropout_p, eps)
    return out, q, k, v, context, logsumexp, h, mean, rstd


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context: Tensor,
    logsumexp: Tensor,
    h: Tensor,
    mean: Tensor,
    rstd: Tensor,
    x: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    w_q: Tensor,
    w_k: Tensor,
    w_v: Tensor,
    w_out: Tensor,
    norm_weight: Tensor,
    active_heads: Tensor | None,
    head_gates: Tensor | None,
    attention_seed: Tensor | None,
    seed: Tensor | None,
    head_size: int,
    first_token_only: bool,
    attention_dropout_p: float,
    dropout_p: float,
) -> tuple[Tensor, ...]:
    """The gradients of x, the four weights each with its bias, norm_weight, norm_bias and head_gates."""
    units, scale = _units(active_heads, head_gates, head_size)
    rows, cu_seqlens_q, max_seqlen_q = _queries(cu_seqlens, max_seqlen, first_token_only)
    residual = x if rows is None else x.index_select(0, rows)
    grad_h, grad_residual, *grad_norm = dropout_add_layer_norm.backward(
        grad_out, h, residual, norm_weight, mean, rstd, seed, dropout_p
    )
    if grad_h is None:  # it equals the gradient of the residual, which is about to be added to
        grad_h, grad_residual = grad_residual, grad_residual.clone()
    grad_context, *grad_out_projection, grad_scale = linear.backward(
        grad_h, context.flatten(1), Kept(w_out, in_units=units, in_scale=scale)
    )
    grad_q, grad_k, grad_v, _ = attention.backward(
        grad_context.view_as(context), context, logsumexp, q, k, v, cu_seqlens, max_seqlen, cu_seqlens_q, max_seqlen_q,
        None, None, attention_seed, attention_dropout_p, head_size**-0.5,
    )  # fmt: skip
    grad_queries, *grad_q_projection, _ = linear.backward(
        grad_q.flatten(1), x, Kept(w_q, out_units=units), x_rows=rows, grad_x=grad_residual
    )
    grad_x, *grad_k_projection, _ = linear.backward(
        grad_k.flatten(1), x, Kept(w_k, out_units=units), grad_x=grad_queries if rows is None else None
    )
    grad_x, *grad_v_projection, _ = linear.backward(grad_v.flatten(1), x, Kept(w_v, out_units=units), grad_x=grad_x)
    if rows is not None:
        grad_x.index_add_(0, rows, grad_queries)
    projections = (*grad_q_projection, *grad_k_projection, *grad_v_projection, *grad_out_projection)
    return grad_x, *projections, *grad_norm, _grad_gates(grad_scale, active_heads, head_gates, head_size)


def _grad_gates(
    grad_scale: Tensor | None, active_heads: Tensor | None, head_gates: Tensor | None, head_size: int
) -> Tensor:
    """A gate scales all columns of its head; empty without gates."""
    if head_gates is None:
        return empty(0)
    grad = grad_scale.view(-1, head_size).sum(1)
    return grad if active_heads is None else head_gates.new_zeros(head_gates.shape).index_copy_(0, active_heads, grad)
