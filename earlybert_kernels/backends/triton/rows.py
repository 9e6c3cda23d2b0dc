"""What kernels share that go through the rows of a matrix: how a row is cut into tiles, and column sums.

A program holds `ROWS` rows at once, each as a tuple of tiles `(ROWS, COLS)`. Tiles have powers of two as sizes, and one
tile of the whole row would waste a quarter of a BERT's threads and random numbers (768 of 1024 columns): three tiles of
256 waste none.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch

#: Programs under the interpreter: few, so that one of them goes through several groups of rows.
INTERPRETED_PROGRAMS = 2
#: Of an H100 and an H200, for launches that are recorded without a GPU.
RECORDED_MULTIPROCESSORS = 132


class Tiling(NamedTuple):
    """How many rows a program holds at once, the columns of a tile, and the warps that hold 8 values a thread of it."""

    rows: int
    cols: int
    num_warps: int


def tiling(width: int) -> Tiling:
    """Rows of `width` values as at most three tiles: a thread has registers for 24 values and their gradients' sums."""
    third = triton.next_power_of_2(triton.cdiv(width, 3))
    cols = max(4, third, min(triton.next_power_of_2(width), 128))
    num_warps = min(max(cols // 256, 4), 32)
    return Tiling(max(num_warps * 256 // cols, 1), cols, num_warps)


def resident_programs(tensor: Tensor, groups: int, per_multiprocessor: int) -> int:
    """How many programs share `groups` groups of rows: no more than the tensor's device runs at once."""
    if tensor.is_cpu:
        return min(groups, INTERPRETED_PROGRAMS)
    multiprocessors = _multiprocessors(tensor.get_device()) if tensor.is_cuda else RECORDED_MULTIPROCESSORS
    return min(groups, multiprocessors * per_multiprocessor)


@cache
def _multiprocessors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit
def row_sum(tiles, CHUNKS: tl.constexpr):
    """The sum of each row, `(ROWS,)`; one reduction across threads for all tiles."""
    total = tiles[0]
    for chunk in tl.static_range(1, CHUNKS):
        total += tiles[chunk]
    return tl.sum(total, 1)


@triton.jit
def load_for_rows(vector, row, col, mask):
    """`vector[col]` for each row, as float32 `(ROWS, COLS)`; where `mask` is False, 0.

    Each thread loads what it needs, from the cache: a load of `(COLS,)` would go by shared memory and wait for others.
    """
    at = tl.zeros_like(row)[:, None] + col[None, :]
    return tl.load(vector + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def zero_tiles(ROWS: tl.constexpr, COLS: tl.constexpr, CHUNKS: tl.constexpr):
    """A tuple of tiles of float32 zeros."""
    tiles = ()
    for _ in tl.static_range(CHUNKS):
        tiles = tiles + (tl.zeros((ROWS, COLS), tl.float32),)
    return tiles


@triton.jit
def store_partial(partials, which, tiles, E: tl.constexpr, COLS: tl.constexpr, CHUNKS: tl.constexpr):
    """Writes the column sums of a program's tiles to row `program` of `partials[which]`, `(programs, E)`."""
    row = which * tl.num_programs(0) + tl.program_id(0)
    for chunk in tl.static_range(CHUNKS):
        col = chunk * COLS + tl.arange(0, COLS)
        tl.store(partials + row * E + col, tl.sum(tiles[chunk], 0), mask=col < E)


@triton.jit(do_not_specialize=["rows"])
def _column_sums_kernel(matrices, first, second, third, rows, stride, cols, ROWS: tl.constexpr, COLS: tl.constexpr):
    which = tl.program_id(1)
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    lanes = tl.arange(0, ROWS).to(tl.int64)
    sums = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, rows, ROWS):
        row = start + lanes
        at = (which * rows + row) * stride
        mask = (row < rows)[:, None] & (col < cols)[None, :]
        sums += tl.load(matrices + at[:, None] + col[None, :], mask=mask, other=0.0).to(tl.float32)
    total = tl.sum(sums, 0)
    if which == 0:
        tl.store(first + col, total, mask=col < cols)
    if second is not None:
        if which == 1:
            tl.store(second + col, total, mask=col < cols)
    if third is not None:
        if which == 2:
            tl.store(third + col, total, mask=col < cols)


def column_sums(matrices: Tensor, *outs: Tensor) -> None:
    """Overwrites each of one to three `outs` by the column sums of one matrix, the same in every run.

    Args:
        matrices: `(len(outs), rows, width)`, contiguous, any dtype; summed in float32.
        outs: each `(cols,)` with cols <= width, any dtype.
    """
    _, rows, width = matrices.shape
    cols = outs[0].numel()
    tile_cols = 128 // matrices.element_size()  # as many as one access of a row's cache line gives
    grid = (triton.cdiv(cols, tile_cols), len(outs))
    first, second, third = (*outs, None, None)[:3]
    launch(_column_sums_kernel, grid, matrices, first, second, third, rows, width, cols, ROWS=128, COLS=tile_cols)
