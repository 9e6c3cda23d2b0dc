"""Calls the attention kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import address
from . import empty, extension, place, run


def _arguments(
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
    window: int | None = None,
) -> tuple[tuple, tuple[Tensor | None, ...]]:
    """What the extension takes, and the tensors behind the addresses in it, to be kept until it returns."""
    qkv = tuple(t if t.stride(2) == 1 else t.contiguous() for t in (q, k, v))
    others = tuple(None if t is None else t.contiguous() for t in (cu_seqlens, cu_seqlens_q, head_mask, head_gates))
    cu, cu_q, mask, gates = map(address, others)
    longest = (max_seqlen, max_seqlen_q, -1 if window is None else window)
    sizes = (len(cu_seqlens) - 1, *q.shape[1:], q.shape[0], k.shape[0], *longest)
    heads = tuple((place(t), t.stride(0), t.stride(1)) for t in qkv)
    return (sizes, cu, cu_q, heads, mask, gates, address(seed), dropout_p, scale), (*qkv, *others)


def forward(q: Tensor, *inputs: Any) -> tuple[Tensor, Any]:
    """`out (Tq, H, D)` and the log-sum-exp of the scores `(H, Tq)`, None unless the inputs `saves`.

    Args:
        q, inputs: those of `AttentionInputs`; q, k and v are all float32, or all bfloat16, which `out` then is, too.
    """
    *others, saves = inputs
    arguments, _kept_alive = _arguments(q, *others)
    out = torch.empty(q.shape, dtype=q.dtype)
    logsumexp = empty(q.shape[1], q.shape[0]) if saves else None
    run(extension.attention_forward, *arguments, place(out), address(logsumexp))
    return out, logsumexp


def backward(
    grad_out: Tensor, out: Tensor, logsumexp: Tensor, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`grad_q`, `grad_k`, `grad_v`, and `grad_gates (H,)` (empty without gates)."""
    arguments, _kept_alive = _arguments(q, k, v, cu_seqlens, *inputs)
    head_gates = inputs[4]
    grad_out = grad_out.contiguous()
    grad_q, grad_k, grad_v = (torch.empty(t.shape, dtype=t.dtype) for t in (q, k, v))
    grad_gates = None if head_gates is None else empty(len(cu_seqlens) - 1, q.shape[1])
    run(
        extension.attention_backward,
        *arguments,
        place(grad_out),
        logsumexp.data_ptr(),
        *map(place, (grad_q, grad_k, grad_v)),
        address(grad_gates),
    )
    return grad_q, grad_k, grad_v, empty(0) if grad_gates is None else grad_gates.sum(0)
