"""Calls the CPU extension `earlybert_kernels._cpu`: tensors in, tensors out.

Everything here takes contiguous or strided float32 tensors on the CPU; `refuses` says what else it was given.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable

import torch
from torch import Tensor

from . import address, load_extension

# The extension uses OpenMP but links no OpenMP library: two runtimes in one process are two pools of
# threads that fight for the cores. Its symbols come from the runtime that `import torch` above has
# loaded for everybody; where torch was built with another one, from the system's.
if not hasattr(ctypes.CDLL(None), "GOMP_parallel"):
    with contextlib.suppress(OSError):  # then loading the extension says what is missing
        ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)

extension, missing = load_extension("_cpu")

if extension is not None and os.environ.get("EARLYBERT_INSTRUCTION_SET"):
    try:
        extension.use_instruction_set(os.environ["EARLYBERT_INSTRUCTION_SET"])
    except ValueError as error:
        raise ValueError(f"EARLYBERT_INSTRUCTION_SET: {error}") from None


def unavailable() -> str | None:
    """Why no op can run on this backend in this process, or None."""
    return missing


def refuses(*tensors: Tensor | None) -> str | None:
    """Why these tensors cannot be taken (device, dtype), or None."""
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            return f"it takes CPU tensors, got one on {tensor.device}"
        if tensor.dtype != torch.float32:
            return f"it takes float32 tensors, got {tensor.dtype}"
    return None


def _run(kernel: Callable[..., None], *arguments) -> None:
    """Calls one of the extension's kernels on as many threads as torch has been told to use."""
    # OpenMP counts for each Python thread apart, and takes all cores in one where torch has not told it this way.
    torch.get_num_threads()
    kernel(*arguments)


def attention_refuses(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, head_mask: Tensor | None, head_gates: Tensor | None
) -> str | None:
    """As `refuses`, for `ops.attention`."""
    return refuses(q, k, v, head_gates)


def _attention_arguments(
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
) -> tuple[tuple, tuple[Tensor | None, ...]]:
    """What the extension takes, and the tensors behind the addresses in it, to be kept until it returns."""
    qkv = tuple(t if t.stride(2) == 1 else t.contiguous() for t in (q, k, v))
    others = tuple(None if t is None else t.contiguous() for t in (cu_seqlens, cu_seqlens_q, head_mask, head_gates))
    cu, cu_q, mask, gates = map(address, others)
    sizes = (len(cu_seqlens) - 1, *q.shape[1:], q.shape[0], k.shape[0], max_seqlen, max_seqlen_q)
    heads = tuple((t.data_ptr(), t.stride(0), t.stride(1)) for t in qkv)
    return (sizes, cu, cu_q, heads, mask, gates, address(seed), dropout_p, scale), (*qkv, *others)


def attention_forward(q: Tensor, *inputs) -> tuple[Tensor, Tensor]:
    """`out (Tq, H, D)` and the log-sum-exp of the scores `(H, Tq)`; see `ops.attention`."""
    arguments, _kept_alive = _attention_arguments(q, *inputs)
    out = torch.empty(q.shape)
    logsumexp = torch.empty(q.shape[1], q.shape[0])
    _run(extension.attention_forward, *arguments, out.data_ptr(), logsumexp.data_ptr())
    return out, logsumexp


def attention_backward(
    grad_out: Tensor, logsumexp: Tensor, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *inputs
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`grad_q`, `grad_k`, `grad_v`, and `grad_gates (H,)` (empty without gates)."""
    arguments, _kept_alive = _attention_arguments(q, k, v, cu_seqlens, *inputs)
    head_gates = inputs[4]
    grad_out = grad_out.contiguous()
    grads = [torch.empty(t.shape) for t in (q, k, v)]
    grad_gates = None if head_gates is None else torch.empty(len(cu_seqlens) - 1, q.shape[1])
    _run(
        extension.attention_backward,
        *arguments,
        grad_out.data_ptr(),
        logsumexp.data_ptr(),
        *(grad.data_ptr() for grad in grads),
        address(grad_gates),
    )
    return *grads, torch.empty(0) if grad_gates is None else grad_gates.sum(0)


def dropout_add_layer_norm_forward(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    dropout_p: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`out (..., E)`, `mean (...)` and `rstd (...)`; see `ops.dropout_add_layer_norm`."""
    x, residual, weight, bias = x.contiguous(), residual.contiguous(), weight.contiguous(), bias.contiguous()
    out = torch.empty_like(x)
    mean, rstd = x.new_empty(x.shape[:-1]), x.new_empty(x.shape[:-1])
    _run(
        extension.dropout_add_layer_norm_forward,
        mean.numel(),
        x.shape[-1],
        x.data_ptr(),
        residual.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        address(seed),
        dropout_p,
        eps,
        out.data_ptr(),
        mean.data_ptr(),
        rstd.data_ptr(),
    )
    return out, mean, rstd


def dropout_add_layer_norm_backward(
    grad_out: Tensor,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    seed: Tensor | None,
    dropout_p: float,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """`grad_x` (None without a seed: it is `grad_residual`), `grad_residual`, `grad_weight`, `grad_bias`."""
    grad_out, x, residual, weight = (t.contiguous() for t in (grad_out, x, residual, weight))
    grad_x = None if seed is None else torch.empty_like(x)
    grad_residual = torch.empty_like(x)
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(weight)
    _run(
        extension.dropout_add_layer_norm_backward,
        mean.numel(),
        x.shape[-1],
        grad_out.data_ptr(),
        x.data_ptr(),
        residual.data_ptr(),
        weight.data_ptr(),
        mean.data_ptr(),
        rstd.data_ptr(),
        address(seed),
        dropout_p,
        address(grad_x),
        grad_residual.data_ptr(),
        grad_weight.data_ptr(),
        grad_bias.data_ptr(),
    )
    return grad_x, grad_residual, grad_weight, grad_bias
