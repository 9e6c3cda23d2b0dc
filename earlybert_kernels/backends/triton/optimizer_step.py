"""One step of LAMB or AdamW over many tensors: four launches, however many tensors there are.

Kernels find the tensors by a table of addresses on the device. A tensor's norms have to be known before any of it can
change, so that it is gone through twice: 24 bytes a float32 number for the moments and the norms, 16 to apply the
update, which is computed anew; to store it in between would cost more than that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch

# Numbers of a tensor whose squares one program sums: a fixed count, so that sums have one order.
CHUNK = 8192
# Numbers that are loaded at once.
BLOCK = 512
# Tensors that are looked up at once; with more, Triton 3.6 runs out of registers.
ROWS = 128
# Chunks of one tensor whose squares are summed at once.
SUMMED = 512

_TRITON = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}

# The table's rows; a column is a tensor. The chunks of all tensors are counted through, and a tensor's end at LAST.
LAST = tl.constexpr(0)
SIZE = tl.constexpr(1)
PARAM = tl.constexpr(2)
GRAD = tl.constexpr(3)
EXP_AVG = tl.constexpr(4)
EXP_AVG_SQ = tl.constexpr(5)
STEP = tl.constexpr(6)


@torch.no_grad()
def optimizer_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[float | Tensor],
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    adapt: bool,
    l1: float,
    grad_factor: float | Tensor = 1.0,
) -> None:
    """See `ops.optimizer_step`. Nothing here waits for the device.

    Step counts, learning rate and factor are read on the device, where a replayed graph finds new ones.
    """
    device, count = params[0].device, len(params)
    if len({grad.dtype for grad in grads}) > 1:
        grads = [grad.float() for grad in grads]
    written = [*params, *exp_avgs, *exp_avg_sqs]
    # The kernels go through memory without gaps; of what has gaps they get copies, which are copied back.
    dense = [[t.contiguous() for t in tensors] for tensors in (params, grads, exp_avgs, exp_avg_sqs)]
    sizes = [param.numel() for param in params]
    ends, chunks = [], 0
    for size in sizes:
        chunks += triton.cdiv(size, CHUNK)
        ends.append(chunks)
    steps = _on_device(steps, device)
    lr, factor = _on_device([lr], device)[0], _on_device([grad_factor], device)[0]
    table = [ends, sizes, *([t.data_ptr() for t in tensors] for tensors in (*dense, steps))]
    table = upload([number for row in table for number in row], torch.int64, device)

    beta1, beta2 = betas
    scales = torch.empty(count, 2, dtype=torch.float32, device=device)
    logs = [math.log(beta) if beta else -math.inf for beta in betas]
    launch(_scales_kernel, (triton.cdiv(count, ROWS),), table, scales, *logs, count, ROWS=ROWS)

    per_chunk = {"CHUNK": CHUNK, "BLOCK": BLOCK, "ROWS": ROWS, "DTYPE": _TRITON[params[0].dtype]}
    squares = torch.empty(chunks, 2, dtype=torch.float32, device=device)
    moments = (beta1, 1 - beta1, beta2, 1 - beta2)
    grad_dtype = _TRITON[grads[0].dtype]
    launch(
        _advance_kernel, (chunks,), table, scales, lr, factor, squares, *moments, eps, weight_decay, l1, count,
        ADAPT=adapt, L1=l1 != 0, GRAD_DTYPE=grad_dtype, **per_chunk,
    )  # fmt: skip
    if adapt:
        rates = torch.empty(count, dtype=torch.float32, device=device)
        launch(_rates_kernel, (count,), table, squares, lr, rates, SUMMED=SUMMED)
        launch(_apply_kernel, (chunks,), table, scales, rates, eps, weight_decay, count, **per_chunk)

    for tensor, copy in zip(written, [*dense[0], *dense[2], *dense[3]], strict=True):
        if copy is not tensor:
            tensor.copy_(copy)
    # Lets autograd notice when one of them was saved for a backward pass that is still to come.
    torch.autograd.graph.increment_version(written)


def upload(numbers: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`torch.tensor(numbers)` on a device without waiting for it, also while a CUDA graph is captured."""
    if device.type != "cuda":
        return torch.tensor(numbers, dtype=dtype, device=device)
    if not torch.cuda.is_current_stream_capturing():
        return torch.tensor(numbers, dtype=dtype, pin_memory=True).to(device, non_blocking=True)
    return _as_arguments(numbers, dtype, device)


def _as_arguments(numbers: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same for a graph: host memory would have to outlive it, while arguments of kernels are kept with it."""
    tensor = torch.zeros(len(numbers), dtype=dtype, device=device)
    torch._foreach_add_(tensor.unbind(), list(numbers))
    return tensor


def _on_device(numbers: Sequence[float | Tensor], device: torch.device) -> Sequence[Tensor]:
    """Each as a float32 tensor of one number on the device; tensors that are there already stay where they are."""
    there = [number.float() for number in numbers if isinstance(number, Tensor) and number.device == device]
    if len(there) == len(numbers):
        return there
    return upload([float(number) for number in numbers], torch.float32, device).unbind()


@triton.jit(do_not_specialize=["tensors"])
def _scales_kernel(table, scales, log_beta1, log_beta2, tensors, ROWS: tl.constexpr):
    """What undoes the bias towards 0: `1 / (1 - beta1^step)` for m, and `(1 - beta2^step)^(-1/2)` for the root of v."""
    tensor = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = tensor < tensors
    address = tl.load(table + STEP * tensors + tensor, mask=exists, other=0)
    # In float64: little is left of 1 - 0.999.
    step = tl.load(address.to(tl.pointer_type(tl.float32)), mask=exists, other=1.0).to(tl.float64)
    bias1 = 1.0 - tl.exp(step * log_beta1)
    bias2 = 1.0 - tl.exp(step * log_beta2)
    tl.store(scales + 2 * tensor, (1.0 / bias1).to(tl.float32), mask=exists)
    tl.store(scales + 2 * tensor + 1, (1.0 / tl.sqrt(bias2)).to(tl.float32), mask=exists)


@triton.jit
def _find(table, chunk, tensors, ROWS: tl.constexpr):
    """The tensor that a chunk belongs to, and the number of its first chunk."""
    tensor = 0
    for start in range(0, tensors, ROWS):
        row = start + tl.arange(0, ROWS)
        last = tl.load(table + LAST * tensors + row, mask=row < tensors, other=chunk + 1)
        tensor += tl.sum((last <= chunk).to(tl.int32))
    return tensor, tl.load(table + LAST * tensors + tensor - 1, mask=tensor > 0, other=0)


@triton.jit
def _pointers(address, begin, DTYPE: tl.constexpr, FULL: tl.constexpr, BLOCK: tl.constexpr):
    """Those of BLOCK numbers from `begin` of a tensor; FULL promises that its address is a multiple of 16."""
    pointer = address.to(tl.pointer_type(DTYPE))
    if FULL:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + begin + tl.arange(0, BLOCK)


@triton.jit
def _update(param, exp_avg, exp_avg_sq, scale, sqrt_scale, eps, weight_decay):
    return exp_avg * scale / (tl.sqrt(exp_avg_sq) * sqrt_scale + eps) + weight_decay * param


@triton.jit
def _advance(
    param_at, grad_at, exp_avg_at, exp_avg_sq_at, begin, count, scale, sqrt_scale, rate, factor,
    beta1, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay, l1,
    ADAPT: tl.constexpr, L1: tl.constexpr, DTYPE: tl.constexpr, GRAD_DTYPE: tl.constexpr, FULL: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The new moments of `count` numbers from `begin`; and their share of the norms, or without ADAPT the update."""
    param_at = _pointers(param_at, begin, DTYPE, FULL, BLOCK)
    grad_at = _pointers(grad_at, begin, GRAD_DTYPE, FULL, BLOCK)
    exp_avg_at = _pointers(exp_avg_at, begin, tl.float32, FULL, BLOCK)
    exp_avg_sq_at = _pointers(exp_avg_sq_at, begin, tl.float32, FULL, BLOCK)
    param_squares = tl.zeros((BLOCK,), tl.float32)
    update_squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        mask = None if FULL else start + tl.arange(0, BLOCK) < count
        p = tl.load(param_at + start, mask=mask).to(tl.float32)
        g = tl.load(grad_at + start, mask=mask).to(tl.float32) * factor
        if L1:
            g += tl.where(p > 0, l1, tl.where(p < 0, -l1, 0.0))
        m = tl.load(exp_avg_at + start, mask=mask) * beta1 + g * one_minus_beta1
        v = tl.load(exp_avg_sq_at + start, mask=mask) * beta2 + g * g * one_minus_beta2
        tl.store(exp_avg_at + start, m, mask=mask)
        tl.store(exp_avg_sq_at + start, v, mask=mask)
        u = _update(p, m, v, scale, sqrt_scale, eps, weight_decay)
        if ADAPT:
            if FULL:
                param_squares += p * p
                update_squares += u * u
            else:
                param_squares += tl.where(mask, p * p, 0.0)
                update_squares += tl.where(mask, u * u, 0.0)
        else:
            tl.store(param_at + start, (p - rate * u).to(DTYPE), mask=mask)
    return tl.sum(param_squares), tl.sum(update_squares)


@triton.jit(do_not_specialize=["tensors"])
def _advance_kernel(
    table, scales, lr, factor, squares, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay, l1, tensors,
    ADAPT: tl.constexpr, L1: tl.constexpr, DTYPE: tl.constexpr, GRAD_DTYPE: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0)
    tensor, first = _find(table, chunk, tensors, ROWS)
    table += tensor
    begin = (chunk - first) * CHUNK
    left = tl.load(table + SIZE * tensors) - begin
    param_at, grad_at = tl.load(table + PARAM * tensors), tl.load(table + GRAD * tensors)
    exp_avg_at, exp_avg_sq_at = tl.load(table + EXP_AVG * tensors), tl.load(table + EXP_AVG_SQ * tensors)
    scale, sqrt_scale = tl.load(scales + 2 * tensor), tl.load(scales + 2 * tensor + 1)
    rate, factor = tl.load(lr), tl.load(factor)
    # Wide loads need addresses at multiples of 16 bytes, and no mask.
    if left >= CHUNK and (param_at | grad_at | exp_avg_at | exp_avg_sq_at) % 16 == 0:
        param_squares, update_squares = _advance(
            param_at, grad_at, exp_avg_at, exp_avg_sq_at, begin, CHUNK, scale, sqrt_scale, rate, factor,
            beta1, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay, l1,
            ADAPT, L1, DTYPE, GRAD_DTYPE, True, BLOCK,
        )  # fmt: skip
    else:
        param_squares, update_squares = _advance(
            param_at, grad_at, exp_avg_at, exp_avg_sq_at, begin, tl.minimum(left, CHUNK).to(tl.int32), scale,
            sqrt_scale, rate, factor, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay, l1,
            ADAPT, L1, DTYPE, GRAD_DTYPE, False, BLOCK,
        )  # fmt: skip
    if ADAPT:
        tl.store(squares + 2 * chunk, param_squares)
        tl.store(squares + 2 * chunk + 1, update_squares)


@triton.jit
def _rates_kernel(table, squares, lr, rates, SUMMED: tl.constexpr):
    """The learning rate of each tensor: times |parameter| / |update|, where neither is 0."""
    tensor = tl.program_id(0)
    first = tl.load(table + tensor - 1, mask=tensor > 0, other=0)
    last = tl.load(table + tensor)
    param_squares = tl.zeros((SUMMED,), tl.float32)
    update_squares = tl.zeros((SUMMED,), tl.float32)
    for start in range(first, last, SUMMED):
        chunk = start + tl.arange(0, SUMMED)
        param_squares += tl.load(squares + 2 * chunk, mask=chunk < last, other=0.0)
        update_squares += tl.load(squares + 2 * chunk + 1, mask=chunk < last, other=0.0)
    param_norm, update_norm = tl.sqrt(tl.sum(param_squares)), tl.sqrt(tl.sum(update_squares))
    ratio = 1.0
    if param_norm > 0 and update_norm > 0:
        ratio = param_norm / update_norm
    tl.store(rates + tensor, tl.load(lr) * ratio)


@triton.jit
def _apply(
    param_at, exp_avg_at, exp_avg_sq_at, begin, count, scale, sqrt_scale, rate, eps, weight_decay,
    DTYPE: tl.constexpr, FULL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    param_at = _pointers(param_at, begin, DTYPE, FULL, BLOCK)
    exp_avg_at = _pointers(exp_avg_at, begin, tl.float32, FULL, BLOCK)
    exp_avg_sq_at = _pointers(exp_avg_sq_at, begin, tl.float32, FULL, BLOCK)
    for start in range(0, count, BLOCK):
        mask = None if FULL else start + tl.arange(0, BLOCK) < count
        p = tl.load(param_at + start, mask=mask).to(tl.float32)
        m, v = tl.load(exp_avg_at + start, mask=mask), tl.load(exp_avg_sq_at + start, mask=mask)
        u = _update(p, m, v, scale, sqrt_scale, eps, weight_decay)
        tl.store(param_at + start, (p - rate * u).to(DTYPE), mask=mask)


@triton.jit(do_not_specialize=["tensors"])
def _apply_kernel(
    table, scales, rates, eps, weight_decay, tensors,
    DTYPE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    # Backwards: the last chunks are what the cache still holds.
    chunk = tl.num_programs(0) - 1 - tl.program_id(0)
    tensor, first = _find(table, chunk, tensors, ROWS)
    table += tensor
    begin = (chunk - first) * CHUNK
    left = tl.load(table + SIZE * tensors) - begin
    param_at = tl.load(table + PARAM * tensors)
    exp_avg_at, exp_avg_sq_at = tl.load(table + EXP_AVG * tensors), tl.load(table + EXP_AVG_SQ * tensors)
    scale, sqrt_scale = tl.load(scales + 2 * tensor), tl.load(scales + 2 * tensor + 1)
    rate = tl.load(rates + tensor)
    if left >= CHUNK and (param_at | exp_avg_at | exp_avg_sq_at) % 16 == 0:
        _apply(
            param_at, exp_avg_at, exp_avg_sq_at, begin, CHUNK, scale, sqrt_scale, rate, eps, weight_decay,
            DTYPE, True, BLOCK,
        )  # fmt: skip
    else:
        _apply(
            param_at, exp_avg_at, exp_avg_sq_at, begin, tl.minimum(left, CHUNK).to(tl.int32), scale, sqrt_scale, rate,
            eps, weight_decay, DTYPE, False, BLOCK,
        )  # fmt: skip
