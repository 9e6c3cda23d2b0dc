"""The attention sublayer: one product for q, k and v, attention, the output projection, and what ends a sublayer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import Parts


def forward(
    parts: Parts,
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
    """The output, and for backward: the projections, context, logsumexp, the block's output, the norm's mean and rstd.

    x may be wider than the weights, whose dtype is that of the products. The projections are those of
    `ops.attention_sublayer`'s shapes for backends on GPUs: `(T, room for heads, 3, D)` in the second of three tensors,
    or, with `first_token_only`, q `(B, room, D)` in the first and k and v `(T, room, 2, D)` in the second.
    """
    units = parts.units.computed_units(active_heads)
    low, rows = x.to(w_q.dtype), _first_tokens(cu_seqlens, first_token_only)
    together = ((w_q, b_q), (w_k, b_k), (w_v, b_v))
    q = x.new_empty(0, dtype=w_q.dtype)
    if rows is not None:
        q = _project(parts, low.index_select(0, rows), together[:1], units, head_size).squeeze(2)
        together = together[1:]
    kv = _project(parts, low, together, units, head_size)
    context, logsumexp = parts.attention.forward(
        *_split(q, kv, rows), *_packing(cu_seqlens, max_seqlen, rows), parts.units.present(units), None, attention_seed,
        attention_dropout_p, head_size**-0.5, zero_pruned=False,
    )  # fmt: skip
    w_folded = parts.fold.fold(w_out, units, head_gates, head_size)
    h, _ = parts.products.linear(context.flatten(1), w_folded, b_out, inputs=parts.units.used(units, head_size))
    residual = x if rows is None else x.index_select(0, rows)
    out, mean, rstd = parts.dropout_add_layer_norm.forward(h, residual, norm_weight, norm_bias, seed, dropout_p, eps)
    return out, q, kv, q.new_empty(0), context, logsumexp, h, mean, rstd


def backward(
    parts: Parts,
    grad_out: Tensor,
    q: Tensor,
    kv: Tensor,
    _: Tensor,
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
    units, heads = parts.units.computed_units(active_heads), w_q.shape[0] // head_size
    low, rows = x.to(w_q.dtype), _first_tokens(cu_seqlens, first_token_only)
    residual = x if rows is None else x.index_select(0, rows)
    grad_h, grad_residual, *grad_norm, grad_b_out = parts.dropout_add_layer_norm.backward(
        grad_out, h, residual, norm_weight, mean, rstd, seed, dropout_p
    )
    if grad_h is None:  # it equals the gradient of the residual, which is about to be added to
        grad_h, grad_residual = grad_residual, grad_residual.clone()

    w_folded, columns = parts.fold.fold(w_out, units, head_gates, head_size), parts.units.used(units, head_size)
    grad_context = parts.products.linear_grad_input(grad_h, w_folded, inputs=columns).view_as(context)
    grad_folded = parts.products.linear_grad_weight(grad_h, context.flatten(1), inputs=columns)
    grad_w_out, grad_gates = parts.fold.unfold(grad_folded, w_out, units, head_gates, head_size)

    grad_q, grad_kv = torch.empty_like(q), torch.empty_like(kv)
    parts.attention.backward(
        grad_context, context, logsumexp, *_split(q, kv, rows), *_packing(cu_seqlens, max_seqlen, rows),
        parts.units.present(units), None, attention_seed, attention_dropout_p, head_size**-0.5, zero_pruned=False,
        grads=_split(grad_q, grad_kv, rows),
    )  # fmt: skip

    if rows is None:
        grad_x, projections = _project_backward(
            parts, grad_kv, low, (w_q, w_k, w_v), units, heads, add_to=grad_residual
        )
    else:
        grad_first, query = _project_backward(
            parts, grad_q.unsqueeze(2), low.index_select(0, rows), (w_q,), units, heads, add_to=grad_residual
        )
        grad_x, projections = _project_backward(parts, grad_kv, low, (w_k, w_v), units, heads)
        grad_x = grad_x.to(x.dtype).index_add_(0, rows, grad_first)
        projections = query + projections
    return grad_x, *projections, grad_w_out, grad_b_out, *grad_norm, grad_gates


def _first_tokens(cu_seqlens: Tensor, first_token_only: bool) -> Tensor | None:
    """The rows that ask, or None for all."""
    return cu_seqlens[:-1].long() if first_token_only else None


def _packing(cu_seqlens: Tensor, max_seqlen: int, rows: Tensor | None) -> tuple[Tensor, int, Tensor, int]:
    """Where each sequence's keys and queries are, and the most of one sequence."""
    if rows is None:
        return cu_seqlens, max_seqlen, cu_seqlens, max_seqlen
    return cu_seqlens, max_seqlen, torch.arange(len(cu_seqlens), dtype=torch.int32, device=cu_seqlens.device), 1


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
