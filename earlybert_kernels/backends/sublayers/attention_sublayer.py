"""The attention sublayer: one product for q, k and v, attention, the output projection, and what ends a sublayer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..arguments import (
    AttentionSublayerGrads,
    AttentionSublayerInputs,
    AttentionSublayerResults,
    AttentionSublayerSaved,
)
from . import Parts

_Own = AttentionSublayerInputs | AttentionSublayerSaved


def forward(parts: Parts, own: AttentionSublayerInputs) -> AttentionSublayerResults:
    """The output, and what backward needs.

    x may be wider than the weights, whose dtype is that of the products. The projections are those of
    `ops.attention_sublayer`'s shapes for backends that join them: `(T, room for heads, 3, D)` in the second of three
    tensors, or, with `first_token_only`, q `(B, room, D)` in the first and k and v `(T, room, 2, D)` in the second.
    """
    units = parts.units.computed_units(own.active_heads)
    low, rows = own.x.to(own.w_q.dtype) if own.x_low is None else own.x_low, _first_tokens(own)
    together: Sequence[tuple[Tensor, Tensor]] = ((own.w_q, own.b_q), (own.w_k, own.b_k), (own.w_v, own.b_v))
    q = own.x.new_empty(0, dtype=own.w_q.dtype)
    if rows is not None:
        q = _project(parts, low.index_select(0, rows), together[:1], units, own.head_size).squeeze(2)
        together = together[1:]
    kv = _project(parts, low, together, units, own.head_size)
    context, logsumexp = parts.attention.forward(
        *_split(q, kv, rows), *_packing(own), parts.units.present(units), None, own.attention_seed,
        own.attention_dropout_p, own.head_size**-0.5, None, own.saves, zero_pruned=False,
    )  # fmt: skip
    w_folded = parts.fold.fold(own.w_out, units, own.head_gates, own.head_size)
    columns = parts.units.used(units, own.head_size)
    h, _ = parts.products.linear(context.flatten(1), w_folded, own.b_out, inputs=columns)
    residual = own.x if rows is None else own.x.index_select(0, rows)
    out, mean, rstd, out_low = parts.dropout_add_layer_norm.forward(
        h,
        residual,
        own.norm_weight,
        own.norm_bias,
        own.seed,
        own.dropout_p,
        own.eps,
        own.saves,
        cast_out=own.return_low,
    )
    out_low = h.new_empty(0) if out_low is None else out_low
    return AttentionSublayerResults(out, q, kv, q.new_empty(0), context, logsumexp, h, mean, rstd, out_low)


def backward(parts: Parts, grad_out: Tensor, own: AttentionSublayerSaved) -> AttentionSublayerGrads:
    """The gradients of the inputs."""
    x, q, kv, context, head_size = own.x, own.q, own.k, own.context, own.head_size
    w_q, w_k, w_v, w_out, gates = own.w_q, own.w_k, own.w_v, own.w_out, own.head_gates
    units, heads = parts.units.computed_units(own.active_heads), w_q.shape[0] // head_size
    rows = _first_tokens(own)
    residual = x if rows is None else x.index_select(0, rows)
    grad_h, grad_residual, *grad_norm, grad_b_out, low_residual = parts.dropout_add_layer_norm.backward(
        grad_out, own.h, residual, own.norm_weight, own.mean, own.rstd, own.seed, own.dropout_p, cast_residual=True
    )
    if grad_h is None:  # it equals the gradient of the residual, which is about to be added to
        grad_h, grad_residual = grad_residual, grad_residual.clone()

    w_folded, columns = parts.fold.fold(w_out, units, gates, head_size), parts.units.used(units, head_size)
    grad_context = parts.products.linear_grad_input(grad_h, w_folded, inputs=columns).view_as(context)
    grad_folded = parts.products.linear_grad_weight(grad_h, context.flatten(1), inputs=columns)
    grad_w_out, grad_gates = parts.fold.unfold(grad_folded, w_out, units, gates, head_size)

    grad_q, grad_kv = torch.empty_like(q), torch.empty_like(kv)
    parts.attention.backward(
        grad_context, context, own.logsumexp, *_split(q, kv, rows), *_packing(own), parts.units.present(units), None,
        own.attention_seed, own.attention_dropout_p, head_size**-0.5, zero_pruned=False,
        grads=_split(grad_q, grad_kv, rows),
    )  # fmt: skip

    if rows is None:
        grad_x, projections = _project_backward(
            parts, grad_kv, low_residual, (w_q, w_k, w_v), units, heads, add_to=grad_residual
        )
    else:
        grad_first, query = _project_backward(
            parts, grad_q.unsqueeze(2), low_residual, (w_q,), units, heads, add_to=grad_residual
        )
        grad_x, projections = _project_backward(parts, grad_kv, x.to(w_q.dtype), (w_k, w_v), units, heads)
        grad_x = grad_x.to(x.dtype).index_add_(0, rows, grad_first)
        projections = query + projections
    return AttentionSublayerGrads._make((grad_x, *projections, grad_w_out, grad_b_out, *grad_norm, grad_gates))


def _first_tokens(own: _Own) -> Tensor | None:
    """The rows that ask, or None for all."""
    return own.cu_seqlens[:-1].long() if own.first_token_only else None


def _packing(own: _Own) -> tuple[Tensor, int, Tensor, int]:
    """Where each sequence's keys and queries are, and the most of one sequence."""
    keys, longest = own.cu_seqlens, own.max_seqlen
    if not own.first_token_only:
        return keys, longest, keys, longest
    return keys, longest, torch.arange(len(keys), dtype=torch.int32, device=keys.device), 1


def _split(q: Tensor, kv: Tensor, rows: Tensor | None) -> tuple[Tensor, ...]:
    """q, k and v, each `(tokens, heads, D)`, of what `_project` has made or their gradients' place."""
    return kv.unbind(2) if rows is None else (q, *kv.unbind(2))


def _by_head(weights: Sequence[Tensor], heads: int) -> Tensor:
    """Weights or biases `(H * D, ...)` -> `(H, weights, D, ...)`: what belongs to a head side by side."""
    return torch.stack([w.view(heads, -1, *w.shape[1:]) for w in weights], dim=1)


def _project(parts: Parts, x: Tensor, layers: Sequence[tuple[Tensor, Tensor]], units: Any, head_size: int) -> Tensor:
    """The linear layers' results for the computed heads, `(tokens, room, layers, D)`, by one product."""
    heads = layers[0][0].shape[0] // head_size
    weight, bias = (parts.units.take(_by_head(own, heads), units) for own in zip(*layers, strict=True))
    outputs = parts.units.used(units, len(layers) * head_size)
    y, _ = parts.products.linear(x, weight.flatten(0, 2), bias.flatten(), outputs=outputs)
    return y.view(x.shape[0], -1, len(layers), head_size)


def _project_backward(
    parts: Parts,
    grad_y: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    units: Any,
    heads: int,
    add_to: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The gradient of `_project`'s x, added to `add_to`, and those of the layers' weights and biases in turn."""
    layers, head_size = grad_y.shape[2:]
    grad_y, outputs = grad_y.flatten(1), parts.units.used(units, layers * head_size)
    weight = parts.units.take(_by_head(weights, heads), units)
    grad_x = parts.products.linear_grad_input(grad_y, weight.flatten(0, 2), outputs=outputs, add_to=add_to)
    grad_weight = parts.products.linear_grad_weight(grad_y, x, outputs=outputs).view(weight.shape)
    grad_bias = grad_y.sum(0).view(weight.shape[:3])
    grads = (parts.units.put(grad, units, heads).unbind(1) for grad in (grad_weight, grad_bias))
    pairs = zip(*grads, strict=True)
    return grad_x, tuple(grad.flatten(0, 1) for pair in pairs for grad in pair)
