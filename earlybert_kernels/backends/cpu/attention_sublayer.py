"""The attention sublayer: projections, attention, output projection, dropout, the residual and the layer norm."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ...units import head_rows, per_column
from ..arguments import (
    AttentionSublayerGrads,
    AttentionSublayerInputs,
    AttentionSublayerResults,
    AttentionSublayerSaved,
)
from . import attention, dropout_add_layer_norm, empty, linear
from .linear import Kept

_Own = AttentionSublayerInputs | AttentionSublayerSaved


def _units(own: _Own) -> tuple[Tensor | None, Tensor | None]:
    """The projections' kept rows, and the scale of each of the output projection's kept columns."""
    active, gates, size = own.active_heads, own.head_gates, own.head_size
    units = None if active is None else head_rows(active, size)
    if gates is None:
        return units, None
    return units, per_column(gates if active is None else gates.index_select(0, active), size)


def _queries(own: _Own) -> tuple[Tensor | None, Tensor, int]:
    """The rows that ask, or None for all; where each sequence's queries are, and the most of one sequence."""
    if not own.first_token_only:
        return None, own.cu_seqlens, own.max_seqlen
    return own.cu_seqlens[:-1].long(), torch.arange(len(own.cu_seqlens), dtype=torch.int32), 1


def forward(own: AttentionSublayerInputs) -> AttentionSublayerResults:
    """The output, and what backward needs."""
    units, scale = _units(own)
    kept = partial(Kept, bfloat16=own.bfloat16)
    inner = torch.bfloat16 if own.bfloat16 else torch.float32
    rows, cu_seqlens_q, max_seqlen_q = _queries(own)
    q, _ = linear.forward(own.x, kept(own.w_q, out_units=units), own.b_q, x_rows=rows, dtype=inner)
    k, _ = linear.forward(own.x, kept(own.w_k, out_units=units), own.b_k, dtype=inner)
    v, _ = linear.forward(own.x, kept(own.w_v, out_units=units), own.b_v, dtype=inner)
    q, k, v = (t.view(t.shape[0], t.shape[1] // own.head_size, own.head_size) for t in (q, k, v))
    context, logsumexp = attention.forward(
        q, k, v, own.cu_seqlens, own.max_seqlen, cu_seqlens_q, max_seqlen_q, None, None, own.attention_seed,
        own.attention_dropout_p, own.head_size**-0.5, None, own.saves,
    )  # fmt: skip
    h, _ = linear.forward(context.flatten(1), kept(own.w_out, in_units=units, in_scale=scale), own.b_out)
    residual = own.x if rows is None else own.x.index_select(0, rows)
    out, mean, rstd = dropout_add_layer_norm.forward(
        h, residual, own.norm_weight, own.norm_bias, own.seed, own.dropout_p, own.eps, own.saves
    )
    return AttentionSublayerResults(out, q, k, v, context, logsumexp, h, mean, rstd, low=empty(0))


def backward(grad_out: Tensor, own: AttentionSublayerSaved) -> AttentionSublayerGrads:
    """The gradients of the inputs."""
    units, scale = _units(own)
    kept = partial(Kept, bfloat16=own.bfloat16)
    rows, cu_seqlens_q, max_seqlen_q = _queries(own)
    x, residual = own.x, own.x if rows is None else own.x.index_select(0, rows)
    grad_h, grad_residual, *grad_norm = dropout_add_layer_norm.backward(
        grad_out, own.h, residual, own.norm_weight, own.mean, own.rstd, own.seed, own.dropout_p
    )
    if grad_h is None:  # it equals the gradient of the residual, which is about to be added to
        grad_h, grad_residual = grad_residual, grad_residual.clone()
    grad_context, *grad_out_projection, grad_scale = linear.backward(
        grad_h, own.context.flatten(1), kept(own.w_out, in_units=units, in_scale=scale)
    )
    grad_q, grad_k, grad_v, _ = attention.backward(
        grad_context.view_as(own.context), own.context, own.logsumexp, own.q, own.k, own.v, own.cu_seqlens,
        own.max_seqlen, cu_seqlens_q, max_seqlen_q, None, None, own.attention_seed, own.attention_dropout_p,
        own.head_size**-0.5,
    )  # fmt: skip
    grad_queries, *grad_q_projection, _ = linear.backward(
        grad_q.flatten(1), x, kept(own.w_q, out_units=units), x_rows=rows, grad_x=grad_residual
    )
    grad_x, *grad_k_projection, _ = linear.backward(
        grad_k.flatten(1),
        x,
        kept(own.w_k, out_units=units),
        grad_x=grad_queries if rows is None else None,
    )
    grad_x, *grad_v_projection, _ = linear.backward(grad_v.flatten(1), x, kept(own.w_v, out_units=units), grad_x=grad_x)
    if rows is not None:
        grad_x.index_add_(0, rows, grad_queries)
    projections = (*grad_q_projection, *grad_k_projection, *grad_v_projection, *grad_out_projection)
    return AttentionSublayerGrads._make((grad_x, *projections, *grad_norm, _grad_gates(grad_scale, own)))


def _grad_gates(grad_scale: Tensor | None, own: AttentionSublayerSaved) -> Tensor:
    """A gate scales all columns of its head; empty without gates."""
    gates = own.head_gates
    if gates is None or grad_scale is None:
        return empty(0)
    grad = grad_scale.view(-1, own.head_size).sum(1)
    return grad if own.active_heads is None else gates.new_zeros(gates.shape).index_copy_(0, own.active_heads, grad)
