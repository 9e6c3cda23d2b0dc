"""Masked multi-head attention over packed sequences by the CUDA extension."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from .. import address, cuda

HEAD_SIZES = (32, 64)


def refuses(
    q: Tensor, k: Tensor, v: Tensor, *others: Tensor | None, max_seqlen: int, window: int | None = None
) -> str | None:
    """Why these tensors cannot be taken (device, dtype, sizes) or there is no such attention, or None."""
    if window is not None:
        return "it has no attention with a window"
    return cuda.refuses(q, k, v, *others) or refuses_sizes(q, q.shape[2], max_seqlen)


def refuses_sizes(source: Tensor, size: int, max_seqlen: int) -> str | None:
    """Why there is no attention with heads of `size` values that come, or are projected, from a tensor; or None."""
    if cuda.product_dtype(source) == torch.float32:
        return "it takes float16 and bfloat16, got float32"
    if size not in HEAD_SIZES:
        return f"it takes heads of 32 or 64 values, got {size}"
    if max_seqlen > (longest := max_keys(source.get_device(), size)):
        return f"it takes sequences of up to {longest} tokens here, got {max_seqlen}"
    return None


@torch.compiler.assume_constant_result
def max_keys(device: int, size: int) -> int:
    """The longest sequence with heads of `size` values that a block of this device has shared memory for."""
    return _max_keys(device, size)


@cache
def _max_keys(device: int, size: int) -> int:  # apart: the compiler looks through what `cache` wraps
    return cuda.extension.attention_max_keys(device, size)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    head_mask: Tensor | None,
    head_gates: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    scale: float,
    window: None = None,
    saves: bool = True,
    *,
    zero_pruned: bool = True,
) -> tuple[Tensor, Any]:
    """`out (Tq, H, D)` and the log-sum-exp of the scores, float32 `(H, Tq)`, None unless `saves`; see `ops.attention`.

    Args:
        q, k, v: float16 or bfloat16, heads of 32 or 64 values, strided in any way.
        max_seqlen, max_seqlen_q: at most 512, or less where blocks have less shared memory.
        seed: int64, 0-d, or None to drop nothing.
        zero_pruned: write zeros for a pruned head; otherwise its part of `out` is left as it was allocated.
    """
    inputs = (q, k, v, cu_seqlens, max_seqlen, cu_seqlens_q, max_seqlen_q, head_mask, head_gates, seed)
    problem, _kept = _problem(*inputs, dropout_p, scale, zero_pruned)
    out = _contiguous_like(q)
    logsumexp = q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32) if saves else None
    cuda.extension.attention_forward(*cuda.launch(q), problem, out.data_ptr(), address(logsumexp))
    return out, logsumexp


def backward(
    grad_out: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    head_mask: Tensor | None,
    head_gates: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    scale: float,
    window: None = None,
    *,
    zero_pruned: bool = True,
    grads: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`grad_q`, `grad_k`, `grad_v`, and `grad_gates (H,)`, float32 (empty without gates).

    Repeated runs give the same bits.

    Args:
        grad_out: like `out`, strided in any way.
        out, logsumexp: what `forward` gave for the other arguments.
        zero_pruned: write zeros for a pruned head; otherwise its parts of the first three are not written at all. The
            gradient of its gate is always 0.
        grads: where to put the first three, strided as q, k and v may be; by default they are allocated.
    """
    inputs = (q, k, v, cu_seqlens, max_seqlen, cu_seqlens_q, max_seqlen_q, head_mask, head_gates, seed)
    problem, _kept = _problem(*inputs, dropout_p, scale, zero_pruned)
    grad_gates, parts = q.new_empty(0, dtype=torch.float32), None
    count, size = cuda.extension.attention_parts(cuda.launch(q)[0], problem)
    if head_gates is not None:
        parts = q.new_empty(((cu_seqlens.shape[0] - 1) * count, q.shape[1]), dtype=torch.float32)
    workspace = q.new_empty(size, dtype=torch.float32) if size else None
    if grads is None:
        grads = (_contiguous_like(q), _contiguous_like(k), _contiguous_like(v))
    written, places = zip(*map(_aligned, grads), strict=True)
    _kept_grad, grad_place = _aligned(grad_out)
    cuda.extension.attention_backward(
        *cuda.launch(q), problem, grad_place, out.data_ptr(), logsumexp.data_ptr(), *places, address(parts),
        address(workspace),
    )  # fmt: skip
    for grad, source in zip(grads, written, strict=True):
        if grad is not source:
            grad.copy_(source)
    return *grads, grad_gates if parts is None else parts.sum(0)


def _problem(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, cu_seqlens_q: Tensor, max_seqlen_q: int,
    head_mask: Tensor | None, head_gates: Tensor | None, seed: Tensor | None, dropout_p: float, scale: float,
    zero_pruned: bool,
) -> tuple[Any, tuple[Tensor, ...]]:  # fmt: skip
    """The extension's description of a call, and tensors to be kept until it is launched."""
    (q, q_place), (k, k_place), (v, v_place) = _aligned(q), _aligned(k), _aligned(v)
    problem = cuda.extension.AttentionProblem(
        cuda.code(q), q_place, k_place, v_place, cu_seqlens.data_ptr(), cu_seqlens_q.data_ptr(), address(head_mask),
        address(head_gates), address(seed), cu_seqlens.shape[0] - 1, q.shape[1], q.shape[2], q.shape[0],
        *_longest(q, k, max_seqlen, max_seqlen_q), dropout_p, scale, zero_pruned,
    )  # fmt: skip
    return problem, (q, k, v)


def _longest(q: Tensor, k: Tensor, max_seqlen: int, max_seqlen_q: int) -> tuple[int, int]:
    """The most keys and queries of a sequence: a caller's bound may be far above what there is."""
    return min(max_seqlen, k.shape[0]), min(max_seqlen_q, q.shape[0])


def _contiguous_like(heads: Tensor) -> Tensor:
    return torch.empty_like(heads, memory_format=torch.contiguous_format)


def _aligned(heads: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Heads of which every 16 bytes can be moved at once, a copy where they were not, and where they are."""
    token, head, value = heads.stride()
    place = heads.data_ptr(), token, head
    if value == 1 and token % 8 == 0 and head % 8 == 0 and place[0] % 16 == 0:
        return heads, place
    heads = heads.clone(memory_format=torch.contiguous_format)
    token, head, _ = heads.stride()
    return heads, (heads.data_ptr(), token, head)
