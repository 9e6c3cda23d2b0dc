"""Dropout, residual addition and layer norm in one pass over memory, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .counter_rng import dropout_constants
from .launch import launch
from .layer_norm import input_gradient, keep_tile, normalise
from .rows import column_sums, load_for_rows, resident_programs, store_partial, tiling, zero_tiles

#: Bytes of a group of rows that may be loaded ahead into shared memory, twice over: 99 KB are the least that a GPU has.
_LOADED_AHEAD = 48 * 1024


@triton.jit(do_not_specialize=["rows"])
def _forward_kernel(
    x,
    residual,
    weight,
    bias,
    seed,
    out,
    out_cast,
    mean,
    rstd,
    rows,
    eps,
    E: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    THRESHOLD: tl.constexpr,
    KEPT_SCALE: tl.constexpr,
):
    CHUNKS: tl.constexpr = (E + COLS - 1) // COLS
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    if THRESHOLD > 0:
        key = tl.load(seed)
    sums = ()
    for chunk in tl.static_range(CHUNKS):
        col = chunk * COLS + tl.arange(0, COLS)
        mask = live[:, None] & (col < E)[None, :]
        at = row[:, None] * E + col[None, :]
        added = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        tile = tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
        if THRESHOLD > 0:
            added *= tl.where(keep_tile(key, row, chunk, COLS, THRESHOLD), KEPT_SCALE, 0.0)
        sums = sums + (tile + added,)
    normalised, row_mean, row_rstd = normalise(sums, eps, E, COLS, CHUNKS)
    for chunk in tl.static_range(CHUNKS):
        col = chunk * COLS + tl.arange(0, COLS)
        mask = live[:, None] & (col < E)[None, :]
        scale = load_for_rows(weight, row, col, mask)
        shift = load_for_rows(bias, row, col, mask)
        tile = normalised[chunk] * scale + shift
        at = row[:, None] * E + col[None, :]
        tl.store(out + at, tile.to(out.dtype.element_ty), mask=mask)
        if out_cast is not None:
            tl.store(out_cast + at, tile.to(out_cast.dtype.element_ty), mask=mask)
    if mean is not None:
        tl.store(mean + row, row_mean, mask=live)
        tl.store(rstd + row, row_rstd, mask=live)


@triton.jit(do_not_specialize=["rows"])
def _backward_kernel(
    grad_out,
    x,
    residual,
    weight,
    mean,
    rstd,
    seed,
    grad_x,
    grad_residual,
    residual_cast,
    partials,
    rows,
    E: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    STAGES: tl.constexpr,
    THRESHOLD: tl.constexpr,
    KEPT_SCALE: tl.constexpr,
):
    CHUNKS: tl.constexpr = (E + COLS - 1) // COLS
    if THRESHOLD > 0:
        key = tl.load(seed)
    # Each program goes through many groups of rows and keeps its share of the column sums in registers until the end.
    weight_sums = zero_tiles(ROWS, COLS, CHUNKS)
    bias_sums = zero_tiles(ROWS, COLS, CHUNKS)
    x_sums = zero_tiles(ROWS, COLS, CHUNKS)
    for start in tl.range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS, num_stages=STAGES):
        row = start + tl.arange(0, ROWS).to(tl.int64)
        live = row < rows
        row_mean = tl.load(mean + row, mask=live, other=0.0)
        row_rstd = tl.load(rstd + row, mask=live, other=0.0)
        kept = tl.zeros((ROWS, COLS), tl.int32)
        normalised = ()
        grad = ()
        new_weight_sums = ()
        new_bias_sums = ()
        for chunk in tl.static_range(CHUNKS):
            col = chunk * COLS + tl.arange(0, COLS)
            mask = live[:, None] & (col < E)[None, :]
            at = row[:, None] * E + col[None, :]
            added = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
            tile = tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
            grad_tile = tl.load(grad_out + at, mask=mask, other=0.0).to(tl.float32)
            if residual_cast is not None:
                tl.store(residual_cast + at, tile.to(residual_cast.dtype.element_ty), mask=mask)
            if THRESHOLD > 0:
                kept_tile = keep_tile(key, row, chunk, COLS, THRESHOLD)
                added *= tl.where(kept_tile, KEPT_SCALE, 0.0)
                kept |= tl.where(kept_tile, 1 << chunk, 0)  # a bit a tile: one register, not one a tile
            tile = (tile + added - row_mean[:, None]) * row_rstd[:, None]
            # Behind a row's end, and in rows that are not there, grad_tile is 0.
            new_weight_sums = new_weight_sums + (weight_sums[chunk] + grad_tile * tile,)
            new_bias_sums = new_bias_sums + (bias_sums[chunk] + grad_tile,)
            normalised = normalised + (tile,)
            scale = tl.load(weight + col, mask=col < E, other=0.0).to(tl.float32)
            grad = grad + (grad_tile * scale[None, :],)
        weight_sums = new_weight_sums
        bias_sums = new_bias_sums
        grad = input_gradient(grad, normalised, row_rstd, E, CHUNKS)
        new_x_sums = ()
        for chunk in tl.static_range(CHUNKS):
            col = chunk * COLS + tl.arange(0, COLS)
            mask = live[:, None] & (col < E)[None, :]
            at = row[:, None] * E + col[None, :]
            tile = grad[chunk]
            tl.store(grad_residual + at, tile.to(grad_residual.dtype.element_ty), mask=mask)
            if THRESHOLD > 0:
                tile *= tl.where((kept & (1 << chunk)) != 0, KEPT_SCALE, 0.0)
            if grad_x is not None:
                tl.store(grad_x + at, tile.to(grad_x.dtype.element_ty), mask=mask)
            new_x_sums = new_x_sums + (x_sums[chunk] + tile,)
        x_sums = new_x_sums
    store_partial(partials, 0, weight_sums, E, COLS, CHUNKS)
    store_partial(partials, 1, bias_sums, E, COLS, CHUNKS)
    store_partial(partials, 2, x_sums, E, COLS, CHUNKS)


def forward(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    dropout_p: float,
    eps: float,
    saves: bool = True,
    *,
    cast_out: bool = False,
) -> tuple[Tensor, Any, Any, Tensor | None]:
    """`LayerNorm(residual + dropout(x)) * weight + bias`; see `ops.dropout_add_layer_norm`.

    Args:
        x, residual: `(..., E)`; residual is of x's dtype or float32.
        weight, bias: `(E,)`, of one dtype.
        seed: int64 0-d on x's device, or None for no dropout.
        dropout_p: in [0, 1).
        eps: added to the variance.
        saves: whether to return the statistics.
        cast_out: whether to return `out` in x's dtype as well where that is another.

    Returns:
        `out (..., E)` of residual's dtype, `mean (...)` and `rstd (...)`, float32, or None, and `out` in x's dtype,
        written along (None where that is its own or `cast_out` is False).
    """
    x, residual, weight, bias = x.contiguous(), residual.contiguous(), weight.contiguous(), bias.contiguous()
    out = torch.empty_like(residual)
    out_cast = torch.empty_like(x) if cast_out and x.dtype != residual.dtype else None
    mean, rstd = (torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device) if saves else None for _ in range(2))
    width = x.shape[-1]
    rows = x.numel() // width
    tile_rows, cols, num_warps = tiling(width)
    launch(
        _forward_kernel,
        (triton.cdiv(rows, tile_rows),),
        x,
        residual,
        weight,
        bias,
        seed,
        out,
        out_cast,
        mean,
        rstd,
        rows,
        eps,
        E=width,
        ROWS=tile_rows,
        COLS=cols,
        num_warps=num_warps,
        **dropout_constants(seed, dropout_p),
    )
    return out, mean, rstd, out_cast


def backward(
    grad_out: Tensor,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    seed: Tensor | None,
    dropout_p: float,
    *,
    cast_residual: bool = False,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients, the same in every run on one kind of GPU.

    Args:
        grad_out: `(..., E)` of residual's dtype.
        x, residual, weight, seed, dropout_p: as in `forward`.
        mean, rstd: from `forward`.
        cast_residual: whether to return `residual` in x's dtype where that is another.

    Returns:
        `grad_x` (None where it equals `grad_residual`: without a seed, in one dtype), `grad_residual`, `grad_weight`,
        `grad_bias`, and `grad_x_columns (E,)`: the column sums of grad_x before it is rounded, in x's dtype. They are
        the gradient of the bias of a linear layer whose result x is, which needs no pass over grad_x of its own. Last
        `residual` in x's dtype (None where that is another and `cast_residual` is False), likewise without one.
    """
    grad_out, x, residual, weight = (t.contiguous() for t in (grad_out, x, residual, weight))
    rows, width = mean.numel(), x.shape[-1]
    same = x.dtype == residual.dtype
    grad_x = None if seed is None and same else torch.empty_like(x)
    grad_residual = torch.empty_like(residual)
    residual_cast = torch.empty_like(x) if cast_residual and not same else None
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(weight)
    grad_x_columns = torch.empty(width, dtype=x.dtype, device=x.device)
    tile_rows, cols, num_warps = tiling(width)
    # A thread keeps three sums and two values of each of 8 columns a tile, and the copy of a value that it works on.
    registers = 72 * triton.cdiv(width, cols) + 16
    programs = resident_programs(x, triton.cdiv(rows, tile_rows), max(2048 // (registers * num_warps), 1))
    group_bytes = tile_rows * width * (x.element_size() + 2 * residual.element_size()) + weight.nbytes
    partials = torch.empty(3, programs, width, dtype=torch.float32, device=x.device)
    launch(
        _backward_kernel,
        (programs,),
        grad_out,
        x,
        residual,
        weight,
        mean,
        rstd,
        seed,
        grad_x,
        grad_residual,
        residual_cast,
        partials,
        rows,
        E=width,
        ROWS=tile_rows,
        COLS=cols,
        STAGES=3 if group_bytes <= _LOADED_AHEAD else 1,
        num_warps=num_warps,
        **dropout_constants(seed, dropout_p),
    )
    column_sums(partials, grad_weight, grad_bias, grad_x_columns)
    return grad_x, grad_residual, grad_weight, grad_bias, grad_x_columns, residual if same else residual_cast
