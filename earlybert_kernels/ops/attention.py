"""Masked multi-head attention over packed sequences."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .. import reference
from ..backends.arguments import AttentionGrads, AttentionInputs, AttentionResults, AttentionSaved
from ..backends.backend import Backend
from .autocast import autocast
from .checks import check_gates, check_mask, check_offsets, check_probability, check_same_device, check_shape
from .custom import Halves
from .declare import Arguments, declare
from .dispatch import choose
from .flops import active_units, attention_flops
from .seeds import draw_seed

_OP = "attention"


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    cu_seqlens_q: Tensor | None = None,
    max_seqlen_q: int | None = None,
    head_mask: Tensor | None = None,
    head_gates: Tensor | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    window: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Bidirectional attention in which each token attends within its own sequence.

    `out[:, h] = head_gates[h] * dropout(softmax(softmax_scale * q_h k_h^T)) v_h` within a sequence. The gate
    is EarlyBERT's coefficient of a head (arXiv 2101.00063, section 3.1).

    Args:
        q: `(T, H, D)`, any floating dtype. The sequences of a batch stand one behind the other, unpadded.
        k, v: `(T, H, D)`, same dtype.
        cu_seqlens: int32 `(B + 1,)`; sequence b is rows `cu_seqlens[b]:cu_seqlens[b + 1]`.
        max_seqlen: length of the longest sequence, in tokens.
        cu_seqlens_q: int32 `(B + 1,)`: where the queries of each sequence stand, when q holds other rows than
            k and v do (only the first token of each, say). Then q is `(cu_seqlens_q[-1], H, D)`.
        max_seqlen_q: the most queries in one sequence; needed with `cu_seqlens_q`.
        head_mask: bool `(H,)`; a False head is not computed: its output and all its gradients are 0.
        head_gates: float32 (or float64) `(H,)`, scales each head's output and gets a gradient.
        dropout_p: probability of dropping an attention weight; applied whenever it is above 0, so pass 0 to
            evaluate.
        softmax_scale: factor on the scores; default `D ** -0.5`.
        window: a token attends to those that are at most so many places away in its sequence; None: to all. With
            `cu_seqlens_q` the queries of a sequence stand at its places from the first one on. A query that no key is
            near gets 0.
        backend: one of `ops.backends("attention")`; default: the best that takes these tensors. `cpu` takes
            float32 and bfloat16; `cuda` float16 and bfloat16, heads of 32 or 64 values, sequences of up to 512 tokens
            (heads of 64 values: 256 where a block has no more than 99 KiB of shared memory), no window.

    Returns:
        `(T, H, D)` like q.

    Raises:
        ValueError: shapes, devices or probabilities do not fit together.
        TypeError: a mask is not bool, gates are in half precision, `cu_seqlens` is not int32.
        BackendUnavailableError: the backend that was asked for cannot run this call.
    """
    if q.dim() != 3:
        raise ValueError(f"{_OP}: q has shape {tuple(q.shape)}, expected (tokens, heads, head size)")
    if (cu_seqlens_q is None) != (max_seqlen_q is None):
        raise ValueError(f"{_OP}: give cu_seqlens_q and max_seqlen_q together or not at all")
    heads, size = q.shape[1:]
    tokens = q.shape[0] if cu_seqlens_q is None else None
    check_shape(_OP, "k", k, (tokens, heads, size), f"(tokens, {heads}, {size}) as q")
    check_shape(_OP, "v", v, tuple(k.shape), "that of k")
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"{_OP}: q, k and v are {q.dtype}, {k.dtype} and {v.dtype}, expected one dtype")
    check_offsets(_OP, "cu_seqlens", cu_seqlens, k.shape[0], max_seqlen)
    if cu_seqlens_q is not None and max_seqlen_q is not None:
        check_offsets(_OP, "cu_seqlens_q", cu_seqlens_q, q.shape[0], max_seqlen_q)
        check_shape(_OP, "cu_seqlens_q", cu_seqlens_q, tuple(cu_seqlens.shape), "that of cu_seqlens")
    check_mask(_OP, "head_mask", head_mask, heads)
    check_gates(_OP, "head_gates", head_gates, heads)
    check_probability(_OP, "dropout_p", dropout_p)
    if window is not None and window < 0:
        raise ValueError(f"{_OP}: window is {window}, expected 0 places or more")
    offsets = {"cu_seqlens": cu_seqlens, "cu_seqlens_q": cu_seqlens_q}
    check_same_device(_OP, q=q, k=k, v=v, **offsets, head_mask=head_mask, head_gates=head_gates)
    tensors = (q, k, v, cu_seqlens, head_mask, head_gates)
    longest = max_seqlen if max_seqlen_q is None else max(max_seqlen, max_seqlen_q)
    windowed = {} if window is None else {"window": window}
    run = choose(_OP, backend, *tensors, size=longest, max_seqlen=longest, **windowed)
    return run(
        q,
        k,
        v,
        cu_seqlens,
        max_seqlen,
        cu_seqlens_q=cu_seqlens_q,
        max_seqlen_q=max_seqlen_q,
        head_mask=head_mask,
        head_gates=head_gates,
        dropout_p=dropout_p,
        softmax_scale=softmax_scale,
        window=window,
    )


def _run_compiled(
    compiled: Callable[..., tuple[Tensor, Tensor]],
    backend: Backend,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    cu_seqlens_q: Tensor | None,
    max_seqlen_q: int | None,
    head_mask: Tensor | None,
    head_gates: Tensor | None,
    dropout_p: float,
    softmax_scale: float | None,
    window: int | None,
) -> Tensor:
    if cu_seqlens_q is None:
        cu_seqlens_q, max_seqlen_q = cu_seqlens, max_seqlen
    scale = q.shape[2] ** -0.5 if softmax_scale is None else softmax_scale
    q, k, v = autocast(q, k, v)
    seed = draw_seed(dropout_p, q.device)
    packing = (cu_seqlens, max_seqlen, cu_seqlens_q, max_seqlen_q)
    return compiled(q, k, v, *packing, head_mask, head_gates, seed, dropout_p, scale, window)[0]


def _shapes(backend: Backend) -> Halves:
    def forward(inputs: AttentionInputs) -> AttentionResults:
        q = inputs.q
        return AttentionResults(q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32))

    def backward(grad_out: Tensor, saved: AttentionSaved) -> AttentionGrads:
        q, k, v = (t.new_empty(t.shape) for t in (saved.q, saved.k, saved.v))
        gates = 0 if saved.head_gates is None else q.shape[1]
        return AttentionGrads(q, k, v, q.new_empty(gates, dtype=torch.float32))

    return Halves(forward, backward)


def _flops(products: int, own: AttentionInputs | AttentionSaved) -> int:
    """Of so many products of the size of the scores."""
    size = active_units(own.head_mask, own.q.shape[1]) * own.q.shape[2]
    offsets = (own.cu_seqlens, own.max_seqlen, own.cu_seqlens_q, own.max_seqlen_q)
    return attention_flops(*offsets, size, products, own.window)


declare(
    _OP,
    Arguments(AttentionInputs, AttentionResults, AttentionSaved, AttentionGrads),
    reference=reference.attention,
    run=_run_compiled,
    shapes=_shapes,
    flops=Halves(partial(_flops, 2), partial(_flops, 5)),
)
