"""The masked-language-model loss: logits of the labelled rows, which their own gradient then overwrites.

The products are the vendor's GEMMs in the tensors' dtype; the kernels here gather the labelled rows, turn logits into
losses and gradients, and scatter the hidden states' gradient. Losses and sums are float32.

`rows` may have a tail of -1, as `torch.nonzero_static(mask, size=capacity, fill_value=-1)` gives it without a wait of
the host: such rows have loss 0 and no gradient, and the mean is over the others. They still take their part in the
GEMMs and their place in memory, so a capacity far above the labelled rows is right but slow.

A label outside the vocabulary reads nothing and makes the loss and the gradients NaN.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .rows import column_sums, tiling

#: A row of logits begins on a multiple of this many: GEMMs and loads of 16 bytes want that, and 30522 is none.
_ALIGNMENT = 64


@triton.jit(do_not_specialize=["count"])
def _gather_kernel(matrix, rows, count, factor, out, E: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = tl.load(rows + at, mask=at < count, other=-1)
    scale = 1.0
    if factor is not None:
        scale = tl.load(factor)
    for begin in tl.static_range(0, E, COLS):
        col = begin + tl.arange(0, COLS)
        inside = (col < E)[None, :]
        tile = tl.load(matrix + row[:, None] * E + col[None, :], mask=(row >= 0)[:, None] & inside, other=0.0)
        tile = tile.to(tl.float32) * scale
        mask = (at < count)[:, None] & inside
        tl.store(out + at[:, None] * E + col[None, :], tile.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["count"])
def _scatter_kernel(picked, rows, count, factor, out, E: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = tl.load(rows + at, mask=at < count, other=-1)
    scale = tl.load(factor)
    for begin in tl.static_range(0, E, COLS):
        col = begin + tl.arange(0, COLS)
        mask = (row >= 0)[:, None] & (col < E)[None, :]
        tile = tl.load(picked + at[:, None] * E + col[None, :], mask=mask, other=0.0).to(tl.float32) * scale
        tl.store(out + row[:, None] * E + col[None, :], tile.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _load_logits(products, bias, at, live, col, STRIDE: tl.constexpr):
    """Logits `(ROWS, COLS)` as float32; minus infinity behind the vocabulary, as `bias` is, and any in unused rows."""
    inside = col < STRIDE
    address = products + at[:, None] + col[None, :]
    tile = tl.load(address, mask=live[:, None] & inside[None, :], other=0.0).to(tl.float32)
    return tile + tl.load(bias + col, mask=inside, other=-float("inf")).to(tl.float32)[None, :]


@triton.jit
def _exp_of_difference(tile, base):
    """`exp(tile - base)` in fewer instructions than `tl.exp`, which spends some on results below 1e-38."""
    return tl.exp2((tile - base[:, None]) * 1.4426950408889634)


@triton.jit(do_not_specialize=["count"])
def _cross_entropy_kernel(
    logits,
    bias,
    labels,
    rows,
    losses,
    count,
    V: tl.constexpr,
    STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    own = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = tl.load(rows + own, mask=own < count, other=-1)
    live = row >= 0
    label = tl.load(labels + row, mask=live, other=-1)
    known = (label >= 0) & (label < V)
    at = own * STRIDE
    label_logit = tl.load(logits + at + label, mask=known, other=float("nan")).to(tl.float32)
    label_logit += tl.load(bias + label, mask=known, other=0.0).to(tl.float32)

    top = tl.full((ROWS,), -float("inf"), tl.float32)
    sums = tl.zeros((ROWS, COLS), tl.float32)
    for begin in tl.range(0, V, COLS, num_stages=3):
        tile = _load_logits(logits, bias, at, live, begin + tl.arange(0, COLS), STRIDE)
        new_top = tl.maximum(top, tl.max(tile, 1))
        # No difference of two infinities, where the first logits are minus infinity.
        base = tl.where(new_top == -float("inf"), 0.0, new_top)
        sums = sums * tl.exp(top - base)[:, None] + _exp_of_difference(tile, base)
        top = new_top
    total = tl.sum(sums, 1)
    loss = tl.log(total) + (top - label_logit)  # in this order a small loss keeps its digits
    tl.store(losses + own, tl.where(live, loss, 0.0), mask=own < count)

    factor = tl.where(known, 1.0 / total, tl.where(live, float("nan"), 0.0))
    tl.debug_barrier()  # all threads have read the label's logit, which one of them overwrites
    for begin in tl.range(0, STRIDE, COLS, num_stages=3):
        col = begin + tl.arange(0, COLS)
        tile = _exp_of_difference(_load_logits(logits, bias, at, live, col, STRIDE), top)
        tile = (tile * factor[:, None]).to(logits.dtype.element_ty)
        mask = (own < count)[:, None] & (col < STRIDE)[None, :]
        tl.store(logits + at[:, None] + col[None, :], tile, mask=mask)
    tl.debug_barrier()  # then one of them takes the 1 away
    probability = tl.exp(label_logit - top) * factor
    tl.store(logits + at + label, (probability - 1.0).to(logits.dtype.element_ty), mask=known)


def _gather(matrix: Tensor, rows: Tensor, factor: Tensor | None = None) -> Tensor:
    """The given rows of `matrix`, times `factor`; zeros for a row of -1."""
    width = matrix.shape[1]
    out = torch.empty(len(rows), width, dtype=matrix.dtype, device=matrix.device)
    tile_rows, cols, num_warps = tiling(width)
    launch(
        _gather_kernel,
        (triton.cdiv(len(rows), tile_rows),),
        matrix,
        rows,
        len(rows),
        factor,
        out,
        E=width,
        ROWS=tile_rows,
        COLS=cols,
        num_warps=num_warps,
    )
    return out


def _factor(grad_loss: Tensor | float, rows: Tensor) -> Tensor:
    """`grad_loss` over the number of labelled rows, float32 0-d; over 1 if there is none."""
    return grad_loss / (rows >= 0).sum().clamp(min=1).float()  # not torch's default dtype


def forward(
    hidden: Tensor, labels: Tensor, rows: Tensor, weight: Tensor, bias: Tensor | None, bfloat16: bool
) -> tuple[Tensor, Tensor]:
    """The mean loss over the labelled rows, and what `backward` needs of their logits.

    Args:
        hidden: `(T, E)`.
        labels: int64 `(T,)`; only those of `rows` are read.
        rows: int64 `(N,)`, the labelled rows, each once; -1 for none.
        weight: `(V, E)` of hidden's dtype; bias: `(V,)` or None.

    Returns:
        The loss, float32 0-d, 0 without a labelled row; and `grad_logits`, `(N, V rounded up to a multiple of 64)` of
        hidden's dtype: softmax - one-hot label in the first V columns, for one loss and not for their mean, which
        float16 could not hold. Zeros elsewhere.
    """
    hidden, labels, rows = hidden.contiguous(), labels.contiguous(), rows.contiguous()
    vocabulary, count = weight.shape[0], len(rows)
    stride = triton.cdiv(vocabulary, _ALIGNMENT) * _ALIGNMENT
    # The bias is added in the kernel, to products that are in memory once; behind the vocabulary it shuts off.
    bias = weight.new_zeros(vocabulary) if bias is None else bias
    bias = torch.nn.functional.pad(bias, (0, stride - vocabulary), value=-torch.inf).contiguous()
    logits = torch.empty(count, stride, dtype=hidden.dtype, device=hidden.device)
    torch.mm(_gather(hidden, rows), weight.t(), out=logits[:, :vocabulary])
    logits[:, vocabulary:] = 0
    losses = torch.empty(count, dtype=torch.float32, device=hidden.device)
    cols = min(triton.next_power_of_2(stride), 2048)
    launch(
        _cross_entropy_kernel,
        (triton.cdiv(count, 2),),
        logits,
        bias,
        labels,
        rows,
        losses,
        count,
        V=vocabulary,
        STRIDE=stride,
        ROWS=2,
        COLS=cols,
        num_warps=max(cols // 256, 1),
    )
    return losses.sum() * _factor(1.0, rows), logits


def backward(
    grad_loss: Tensor, grad_logits: Tensor, hidden: Tensor, rows: Tensor, weight: Tensor, bfloat16: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of hidden, weight and bias, the last in weight's dtype.

    Args:
        grad_loss: float32 0-d.
        grad_logits: from `forward`, left as it is.
        hidden, rows, weight: as in `forward`.
    """
    hidden, rows = hidden.contiguous(), rows.contiguous()
    vocabulary, width = weight.shape
    factor = _factor(grad_loss, rows)
    # The factor goes to the small tensors: those of the vocabulary's size are gone through once.
    grads = grad_logits[:, :vocabulary]
    grad_weight = torch.mm(grads.t(), _gather(hidden, rows, factor))
    grad_picked = torch.mm(grads, weight)
    grad_hidden = torch.zeros_like(hidden)
    tile_rows, cols, num_warps = tiling(width)
    launch(
        _scatter_kernel,
        (triton.cdiv(len(rows), tile_rows),),
        grad_picked,
        rows,
        len(rows),
        factor,
        grad_hidden,
        E=width,
        ROWS=tile_rows,
        COLS=cols,
        num_warps=num_warps,
    )
    sums = torch.empty(grad_logits.shape[1], dtype=torch.float32, device=hidden.device)
    column_sums(grad_logits[None], sums)
    return grad_hidden, grad_weight, (sums[:vocabulary] * factor).to(weight.dtype)
