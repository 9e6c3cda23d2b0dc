"""BERT's self-attention sublayer on packed tokens: one autograd node."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..backends.arguments import (
    AttentionSublayerGrads,
    AttentionSublayerInputs,
    AttentionSublayerResults,
    AttentionSublayerSaved,
)
from ..backends.backend import Backend
from .autocast import factors, widened
from .checks import check_active, check_gates, check_offsets, check_probability, check_same_device, check_shape
from .custom import Halves
from .declare import Arguments, by_name, declare
from .dispatch import choose
from .flops import active_units, attention_flops
from .low_copy import check_low, empty_low, returned, usable, without_low
from .seeds import draw_seed

_OP = "attention_sublayer"


def attention_sublayer(
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
    *,
    head_size: int,
    active_heads: Tensor | None = None,
    head_gates: Tensor | None = None,
    first_token_only: bool = False,
    attention_dropout_p: float = 0.0,
    dropout_p: float = 0.0,
    eps: float = 1e-12,
    x_low: Tensor | None = None,
    return_low: bool = False,
    backend: str | None = None,
) -> Any:
    """`dropout_add_layer_norm(attention(q, k, v) w_out^T + b_out, x, norm_weight, norm_bias)` on the active heads.

    q, k and v are linear layers of x, cut into heads of `head_size` rows.

    Args:
        x: `(T, E)`, any floating dtype: packed sequences.
        cu_seqlens, max_seqlen: as in `attention`.
        w_q, w_k, w_v: `(H * head_size, E)`; b_q, b_k, b_v: `(H * head_size,)`.
        w_out: `(E, H * head_size)`; b_out: `(E,)`.
        norm_weight, norm_bias: `(E,)`.
        head_size: rows of a head.
        active_heads: the heads to compute, as sorted int64 indices or as bool `(H,)`; None for all. The gradients of
            the others are 0. See `feed_forward_sublayer` on which to use.
        head_gates: float32 (or float64) `(H,)`, one for every head, active or not.
        first_token_only: return the first token of each sequence, and compute no other query. Then no sequence may
            be empty.
        attention_dropout_p: of the attention weights; applied whenever it is above 0.
        dropout_p: of the output projection's result, likewise.
        eps: of the layer norm.
        x_low: x in the dtype of the products, where that is another, as a sublayer before has returned it: saves a pass
            over x. Gradients go to x. Ignored where the products have yet another dtype.
        return_low: return such a copy of the result as well.
        backend: one of `ops.backends("attention_sublayer")`; default: the best that takes these tensors. `cuda` takes
            float16 and bfloat16 weights, or autocast; heads and sequences as in `attention`; indices, and no mask.

    Returns:
        `(T, E)`, or `(B, E)` when `first_token_only`; with `return_low` that, and its copy or None: there is none where
        it would have the same dtype, and in plain PyTorch.

    Raises:
        ValueError: shapes, devices or probabilities do not fit together.
        TypeError: gates are in half precision, `active_heads` are neither int64 nor bool, or `cu_seqlens` is not int32.
        IndexError: an index is outside the units (on the CPU).
        BackendUnavailableError: the backend that was asked for cannot run this call.
    """
    if w_q.dim() != 2 or w_q.shape[0] % head_size:
        raise ValueError(f"{_OP}: w_q has shape {tuple(w_q.shape)}, expected (heads * {head_size}, hidden size)")
    size, hidden = w_q.shape
    heads = size // head_size
    check_shape(_OP, "x", x, (None, hidden), f"(tokens, {hidden}) to fit w_q")
    check_low(_OP, x_low, x)
    for name, tensor in (("w_k", w_k), ("w_v", w_v)):
        check_shape(_OP, name, tensor, (size, hidden), f"({size}, {hidden}) as w_q")
    for name, tensor in (("b_q", b_q), ("b_k", b_k), ("b_v", b_v)):
        check_shape(_OP, name, tensor, (size,), f"({size},) to fit w_q")
    check_shape(_OP, "w_out", w_out, (hidden, size), f"({hidden}, {size}) to fit w_q")
    for name, tensor in (("b_out", b_out), ("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        check_shape(_OP, name, tensor, (hidden,), f"({hidden},) to fit w_out")
    check_offsets(_OP, "cu_seqlens", cu_seqlens, x.shape[0], max_seqlen, least=int(first_token_only))
    check_active(_OP, "active_heads", active_heads, heads)
    check_gates(_OP, "head_gates", head_gates, heads)
    check_probability(_OP, "attention_dropout_p", attention_dropout_p)
    check_probability(_OP, "dropout_p", dropout_p)
    weights = {"w_q": w_q, "b_q": b_q, "w_k": w_k, "b_k": b_k, "w_v": w_v, "b_v": b_v, "w_out": w_out, "b_out": b_out}
    weights |= {"norm_weight": norm_weight, "norm_bias": norm_bias}
    units = {"active_heads": active_heads, "head_gates": head_gates}
    check_same_device(_OP, x=x, x_low=x_low, cu_seqlens=cu_seqlens, **weights, **units)
    tensors = (x, cu_seqlens, *weights.values(), *units.values())
    run = choose(_OP, backend, *tensors, size=x.shape[0], head_size=head_size, max_seqlen=max_seqlen)
    return run(
        x,
        cu_seqlens,
        max_seqlen,
        *weights.values(),
        **units,
        head_size=head_size,
        first_token_only=first_token_only,
        attention_dropout_p=attention_dropout_p,
        dropout_p=dropout_p,
        eps=eps,
        x_low=x_low,
        return_low=return_low,
    )


def _run_compiled(
    compiled: Callable[..., tuple[Tensor, ...]],
    backend: Backend,
    x: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *weights: Tensor,
    active_heads: Tensor | None,
    head_gates: Tensor | None,
    head_size: int,
    first_token_only: bool,
    attention_dropout_p: float,
    dropout_p: float,
    eps: float,
    x_low: Tensor | None,
    return_low: bool,
) -> Any:
    seeds = draw_seed(attention_dropout_p, x.device), draw_seed(dropout_p, x.device)
    options = (head_size, first_token_only, attention_dropout_p, dropout_p, eps)
    *linears, norm_weight, norm_bias = weights
    taken, bfloat16 = factors(backend, *linears)
    dtype, (x, *norm) = x.dtype, widened(backend, x, norm_weight, norm_bias)
    weights = (*taken, *norm)
    low = (usable(x_low, x, weights[0]), return_low, bfloat16)
    results = compiled(x, cu_seqlens, max_seqlen, *weights, active_heads, head_gates, *seeds, *options, *low)
    return returned(results, weights[0], return_low, dtype)


def _shapes(backend: Backend) -> Halves:
    return Halves(partial(_forward_shapes, backend.joins_projections), _backward_shapes)


def _forward_shapes(joined: bool, inputs: AttentionSublayerInputs) -> AttentionSublayerResults:
    x, w_q, size = inputs.x, inputs.w_q, inputs.head_size
    tokens, hidden = x.shape
    heads = w_q.shape[0] // size if inputs.active_heads is None else inputs.active_heads.shape[0]
    queries = inputs.cu_seqlens.shape[0] - 1 if inputs.first_token_only else tokens
    projections: tuple[tuple[int, ...], ...]
    if not joined:
        projections = (queries, heads, size), (tokens, heads, size), (tokens, heads, size)
    elif inputs.first_token_only:  # one product makes k and v, which have other rows than q
        projections = (queries, heads, size), (tokens, heads, 2, size), (0,)
    else:
        projections = (0,), (tokens, heads, 3, size), (0,)
    inner = torch.bfloat16 if inputs.bfloat16 else w_q.dtype
    q, k, v = (w_q.new_empty(shape, dtype=inner) for shape in projections)
    out = x.new_empty((queries, hidden))
    return AttentionSublayerResults(
        out,
        q,
        k,
        v,
        context=w_q.new_empty((queries, heads, size), dtype=inner),
        logsumexp=x.new_empty((heads, queries), dtype=torch.float32),
        h=w_q.new_empty((queries, hidden)),
        mean=x.new_empty(queries, dtype=torch.float32),
        rstd=x.new_empty(queries, dtype=torch.float32),
        low=empty_low(out, w_q, inputs.return_low),
    )


def _backward_shapes(grad_out: Tensor, saved: AttentionSublayerSaved) -> AttentionSublayerGrads:
    x, w_q = saved.x, saved.w_q
    size, hidden = w_q.shape
    linears = (w_q.new_empty(s) for s in (*(w_q.shape, (size,)) * 3, (hidden, size), (hidden,)))
    norm = (saved.norm_weight.new_empty(hidden) for _ in range(2))
    gates = x.new_empty(0 if saved.head_gates is None else size // saved.head_size, dtype=torch.float32)
    return AttentionSublayerGrads._make((x.new_empty(x.shape), *linears, *norm, gates))


def _kernels(backend: Backend) -> Halves:
    return by_name(_ARGUMENTS, Halves(*backend.halves(_OP)))


def _flops(linear: int, products: int, own: AttentionSublayerInputs | AttentionSublayerSaved) -> int:
    """Of the projections `linear` times, and of so many products of the size of the scores."""
    (size, hidden), sequences = own.w_q.shape, own.cu_seqlens.shape[0] - 1
    size = active_units(own.active_heads, size // own.head_size) * own.head_size
    queries = sequences if own.first_token_only else own.x.shape[0]
    asking = torch.arange(sequences + 1) if own.first_token_only else None
    attention = attention_flops(own.cu_seqlens, own.max_seqlen, asking, 1, size, products)
    return linear * 2 * hidden * size * (2 * own.x.shape[0] + 2 * queries) + attention


_ARGUMENTS = Arguments(
    AttentionSublayerInputs, AttentionSublayerResults, AttentionSublayerSaved, AttentionSublayerGrads
)
declare(
    _OP,
    _ARGUMENTS,
    reference=without_low(reference.attention_sublayer),
    run=_run_compiled,
    shapes=_shapes,
    kernels=_kernels,
    flops=Halves(partial(_flops, 1, 2), partial(_flops, 2, 5)),
    active="active_heads",
)
