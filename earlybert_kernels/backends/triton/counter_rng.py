"""Dropout masks from counter-based random numbers: the rule of `reference.counter_rng`, inside kernels."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ...reference.counter_rng import ROUNDS, kept_scale, threshold

_ROUNDS: tl.constexpr = tl.constexpr(ROUNDS)


def dropout_constants(seed: object | None, dropout_p: float) -> dict[str, Any]:
    """The constants of a kernel that drops: a kept value's factor, and the threshold of `keep`, 0 to drop nothing."""
    if seed is None:
        return {"THRESHOLD": 0, "KEPT_SCALE": 1.0}
    return {"THRESHOLD": threshold(dropout_p), "KEPT_SCALE": kept_scale(dropout_p)}


@triton.jit
def _philox(seed, block, row):
    """The words of a block of a row. Triton's own Philox makes two multiplications of each one."""
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    c0, c1, c2, c3 = block, (row >> 32).to(tl.uint32), row.to(tl.uint32), tl.zeros_like(block)
    for _ in tl.static_range(_ROUNDS):
        a, b = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57
        c0, c1 = (b >> 32).to(tl.uint32) ^ c1 ^ k0, b.to(tl.uint32)
        c2, c3 = (a >> 32).to(tl.uint32) ^ c3 ^ k1, a.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def keep(seed, row, col, THRESHOLD: tl.constexpr):
    """Which elements dropout keeps.

    Written as if each element drew the whole block that it is in. In a layout in which a thread has several elements
    of a block, as those of tensor cores' results, the compiler finds that it computes the same, and does so once.

    Args:
        seed: int64, the mask's seed.
        row: int64, the rows of the elements in the tensor that is dropped from.
        col: int32, their columns, broadcastable with `row`.
        THRESHOLD: of `dropout_constants`.

    Returns:
        bool, of the broadcast shape.
    """
    block = (col // 32 * 4 + col % 8 // 2).to(tl.uint32)
    w0, w1, w2, w3 = _philox(seed, block, row)
    word = col % 32 // 8
    chosen = tl.where(word < 2, tl.where(word == 0, w0, w1), tl.where(word == 2, w2, w3))
    # The draw at the top of 32 bits: the other half and the bit that is no part of it are shifted out.
    return (chosen << (17 - col % 2 * 16).to(tl.uint32)) >= (THRESHOLD << 17)


@triton.jit
def keep_rows(seed, row, first, COLS: tl.constexpr, THRESHOLD: tl.constexpr):
    """As `keep`, of columns first ... first + COLS, for threads that do not have a block's elements.

    Each block is drawn once, and what comes of it is sorted into columns, which may go by shared memory.

    Args:
        seed, THRESHOLD: as for `keep`.
        row: int64 `(ROWS,)`.
        first: a multiple of COLS.
        COLS: a power of two.

    Returns:
        bool `(ROWS, COLS)`.
    """
    if COLS < 32:  # of a group that is not there as a whole
        return keep(seed, row[:, None], (first + tl.arange(0, COLS))[None, :], THRESHOLD)
    else:  # noqa: RET505 - Triton compiles one of the two
        block = first // 8 + tl.arange(0, COLS // 8)[None, :]
        w0, w1, w2, w3 = _philox(seed, block.to(tl.uint32), row[:, None])
        words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))  # those of a block side by side
        words = tl.permute(tl.reshape(words, (row.shape[0], COLS // 32, 4, 4)), (0, 1, 3, 2))
        draws = tl.join(words << 17, words << 1)  # at the top of 32 bits
        return tl.reshape(draws >= (THRESHOLD << 17), (row.shape[0], COLS))
