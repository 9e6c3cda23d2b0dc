"""The layer norm of rows that a program holds as tuples of tiles, and its gradient; see `rows`."""

from __future__ import annotations

import triton
import triton.language as tl

from .counter_rng import keep_rows
from .rows import row_sum


@triton.jit
def normalise(tiles, eps, E: tl.constexpr, COLS: tl.constexpr, CHUNKS: tl.constexpr):
    """Rows of E values, zeros behind them, minus their mean and divided by their standard deviation.

    Returns:
        The tiles, and mean and 1 / standard deviation, `(ROWS,)`.
    """
    mean = row_sum(tiles, CHUNKS) / E
    centred = ()
    squares = ()
    # The variance from the differences, because mean(h^2) - mean(h)^2 cancels when the mean is large.
    for chunk in tl.static_range(CHUNKS):
        tile = tiles[chunk] - mean[:, None]
        if CHUNKS * COLS > E:
            tile = tl.where((chunk * COLS + tl.arange(0, COLS) < E)[None, :], tile, 0.0)
        centred = centred + (tile,)
        squares = squares + (tile * tile,)
    rstd = tl.rsqrt(row_sum(squares, CHUNKS) / E + eps)
    normalised = ()
    for chunk in tl.static_range(CHUNKS):
        normalised = normalised + (centred[chunk] * rstd[:, None],)
    return normalised, mean, rstd


@triton.jit
def input_gradient(grad, normalised, rstd, E: tl.constexpr, CHUNKS: tl.constexpr):
    """The gradient of the norm's input, from that of `normalised` (zero behind a row's end)."""
    products = ()
    for chunk in tl.static_range(CHUNKS):
        products = products + (grad[chunk] * normalised[chunk],)
    average = row_sum(grad, CHUNKS) / E
    average_product = row_sum(products, CHUNKS) / E
    result = ()
    for chunk in tl.static_range(CHUNKS):
        difference = grad[chunk] - average[:, None] - normalised[chunk] * average_product[:, None]
        result = result + (difference * rstd[:, None],)
    return result


@triton.jit
def keep_tile(seed, row, chunk: tl.constexpr, COLS: tl.constexpr, THRESHOLD: tl.constexpr):
    """Which elements dropout keeps of tile `chunk` of the rows `row`, int64 `(ROWS,)`."""
    return keep_rows(seed, row, chunk * COLS, COLS, THRESHOLD)
