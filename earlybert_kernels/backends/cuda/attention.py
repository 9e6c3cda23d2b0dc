"""Masked multi-head attention over packed sequences by the CUDA extension."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .. import address, cuda

HEAD_SIZES = (32, 64)


def refuses(q: Tensor, k: Tensor, v: Tensor, *others: Tensor | None, max_seqlen: int) -> str | None:
    """Why these tensors cannot be taken (device, dtype, sizes), or None."""
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
    *,
    zero_pruned: bool = True,
) -> tuple[Tensor, Tensor]:
    """`out (Tq, H, D)` and the log-sum-exp of the scores, float32 `(H, Tq)`; see `ops.attention`.

    Args:
        q, k, v: float16 or bfloat16, heads of 32 or 64 values, strided in any way.
        max_seqlen, max_seqlen_q: at most 512, or less where blocks have less shared memory.
        seed: int64, 0-d, or None to drop nothing.
        zero_pruned: write zeros for a pruned head; otherwise its part of `out` is left as it was allocated.
    """
    inputs = (q, k, v, cu_seqlens, max_seqlen, cu_seqlens_q, max_seqlen_q, head_mask, head_gates, seed)
    problem, _kept = _problem(*inputs, dropout_p, scale, zero_pruned)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    logsumexp = torch.empty((q.shape[1], q.shape[0]), dtype=torch.float32, device=q.device)
    cuda.extension.attention_forward(*cuda.launch(q), problem, out.data_ptr(), logsumexp.data_ptr())
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
    heads, sequences = q.shape[1], cu_seqlens.shape[0] - 1
    tiles = cuda.extension.attention_tiles(*_longest(q, k, max_seqlen, max_seqlen_q))
    rows = 0 if head_gates is None else sequences * tiles
    grad_gates = torch.empty((rows, heads), dtype=torch.float32, device=q.device)
    if grads is None:
        grads = tuple(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    # Where a gradient is to stand so that 16 bytes of it cannot be written at once, it is copied there.
    written = [t if _is_aligned(t) else torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in grads]
    grad_out = _aligned(grad_out)
    cuda.extension.attention_backward(
        *cuda.launch(q),
        problem,
        _heads(grad_out),
        out.data_ptr(),
        logsumexp.data_ptr(),
        *map(_heads, written),
        address(None if head_gates is None else grad_gates),
    )
    for grad, source in zip(grads, written, strict=True):
        if grad is not source:
            grad.copy_(source)
    return *grads, grad_gates[:0].view(-1)[:0] if head_gates is None else grad_gates.sum(0)


def _problem(
    q, k, v, cu_seqlens, max_seqlen, cu_seqlens_q, max_seqlen_q, head_mask, head_gates, seed, dropout_p, scale,
    zero_pruned,
):  # fmt: skip
    """The extension's description of a call, and the tensors that it points to."""
    q, k, v = _aligned(q), _aligned(k), _aligned(v)
    problem = cuda.extension.AttentionProblem(
        cuda.code(q), _heads(q), _heads(k), _heads(v), cu_seqlens.data_ptr(), cu_seqlens_q.data_ptr(),
        address(head_mask), address(head_gates), address(seed), cu_seqlens.shape[0] - 1, q.shape[1], q.shape[2],
        q.shape[0], *_longest(q, k, max_seqlen, max_seqlen_q), (max_seqlen + 3) // 4 * 4, dropout_p, scale, zero_pruned,
    )  # fmt: skip
    return problem, (q, k, v)


def _longest(q: Tensor, k: Tensor, max_seqlen: int, max_seqlen_q: int) -> tuple[int, int]:
    """The most keys and queries of a sequence: a caller's bound may be far above what there is."""
    return min(max_seqlen, k.shape[0]), min(max_seqlen_q, q.shape[0])


def _is_aligned(heads: Tensor) -> bool:
    """Whether every 16 bytes of a head can be moved at once."""
    token, head, value = heads.stride()
    return value == 1 and token % 8 == 0 and head % 8 == 0 and heads.data_ptr() % 16 == 0


def _aligned(heads: Tensor) -> Tensor:
    return heads if _is_aligned(heads) else heads.clone(memory_format=torch.contiguous_format)


def _heads(heads: Tensor) -> tuple[int, int, int]:
    return heads.data_ptr(), heads.stride(0), heads.stride(1)
