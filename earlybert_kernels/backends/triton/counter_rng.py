"""Dropout masks from counter-based random numbers: the rule of `reference.counter_rng`, inside kernels."""

from __future__ import annotations

import triton
import triton.language as tl

from ...reference.counter_rng import threshold


def dropout_constants(seed: object | None, dropout_p: float) -> dict[str, int | float]:
    """The constants of a kernel that drops: a kept value's factor, and the threshold of `keep`, 0 to drop nothing."""
    if seed is None:
        return {"THRESHOLD": 0, "KEPT_SCALE": 1.0}
    return {"THRESHOLD": threshold(dropout_p), "KEPT_SCALE": 1.0 / (1.0 - dropout_p)}


@triton.jit
def keep(seed, first, COLS: tl.constexpr, THRESHOLD: tl.constexpr):
    """Which elements dropout keeps of rows of COLS elements.

    Args:
        seed: int64, the mask's seed.
        first: int64 `(ROWS,)`, the index of each row's first element in the tensor that is dropped from, a multiple
            of 4.
        COLS: elements of a row, a power of two of at least 4.
        THRESHOLD: of `dropout_constants`.

    Returns:
        bool `(ROWS, COLS)`.
    """
    block = (first // 4)[:, None] + tl.arange(0, COLS // 4)[None, :]
    zero = block.to(tl.uint32) * 0
    w0, w1, w2, w3 = tl.philox(seed, block.to(tl.uint32), (block >> 32).to(tl.uint32), zero, zero)
    # One call gives the words of four neighbours: w0 w1 w2 w3 of the first block, then those of the second, ...
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3)) >= THRESHOLD


@triton.jit
def keep_each(seed, index, THRESHOLD: tl.constexpr):
    """As `keep`, for elements anywhere: `index`, int64, says where each is. Four times the work."""
    block = index // 4
    zero = block.to(tl.uint32) * 0
    w0, w1, w2, w3 = tl.philox(seed, block.to(tl.uint32), (block >> 32).to(tl.uint32), zero, zero)
    word = index % 4
    return tl.where(word < 2, tl.where(word == 0, w0, w1), tl.where(word == 2, w2, w3)) >= THRESHOLD
