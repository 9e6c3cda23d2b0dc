"""Which elements a dropout seed keeps: the counter-based rule that the kernels share, in plain PyTorch.

The tensor that is dropped from is seen as rows of its last dimension. A group of 32 columns of row r draws from four
blocks of random bits, Philox-4x32-7 at the counters `(block, r >> 32, r % 2^32, 0)` under the 64-bit key `seed`, where
block is 4 * group + 0 ... 3. A block has 8 draws: the low 15 bits of each half of its 4 words. Column 8n + 2c + h of
the group (n, c in 0 ... 3, h in 0, 1) takes half h (0: the low one) of word n of block c. So a thread that holds a row
of tensor cores' results, of which it has columns 2c and 2c + 1 of every 8, needs all of its blocks and nobody else's;
and draws are of 15 bits because two of those compare with a threshold in one instruction of a GPU.

An element is kept when its draw is at least `threshold(p)`, which is p * 2^15 rounded to the nearest integer, and then
multiplied by `kept_scale(p)`, one over the probability of that, which makes the expectation exact. So a probability is
off by at most 2^-16: less is no dropout at all, and p nearest to 1 still keeps one element of 2^15.

A mask is never stored: whoever needs it again regenerates it from the seed.

Philox is from Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Its 7 rounds are the fewest that
pass all tests of TestU01's BigCrush there; 10 are the authors' default.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDS = 7
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_DRAWS = 2**15


def threshold(p: float) -> int:
    """The smallest draw that dropout with probability `p` keeps, for 0 <= p < 1."""
    return min(int(p * _DRAWS + 0.5), _DRAWS - 1)


def kept_scale(p: float) -> float:
    """What dropout with probability `p` multiplies a kept element by: one over the probability that it is kept."""
    return _DRAWS / (_DRAWS - threshold(p))


def philox(counter: Sequence[Tensor | int], key: Sequence[Tensor | int], rounds: int = ROUNDS) -> tuple:
    """Philox-4x32.

    Args:
        counter: four words, each an int or an int64 tensor of values in [0, 2^32).
        key: two words, likewise.
        rounds: how many.

    Returns:
        Four words, likewise, of the broadcast shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # int64 products wrap, which leaves their 64 bits right; only the shift must drop copies of the sign.
        a, b = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((b >> 32) & _LOW) ^ c1 ^ k0, b & _LOW, ((a >> 32) & _LOW) ^ c3 ^ k1, a & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return c0, c1, c2, c3


def keep_mask(seed: int | Tensor, shape: Sequence[int], p: float, device: torch.device | str | None = None) -> Tensor:
    """The elements that dropout with probability `p` keeps under `seed`.

    Args:
        seed: a 64-bit integer, or a 0-d int64 tensor.
        shape: of the tensor that is dropped from, of at least one dimension. How many columns there are does not change
            what is kept of the first ones.
        p: probability of dropping an element, in [0, 1).
        device: of the result.

    Returns:
        bool, of shape `shape`; True = kept.
    """
    *outer, cols = shape
    row = torch.arange(math.prod(outer), dtype=torch.int64, device=device)[:, None]
    groups = (cols + 31) // 32
    block = torch.arange(4 * groups, dtype=torch.int64, device=device)[None, :]
    counter = (block, row >> 32, row & _LOW, torch.zeros_like(block))
    words = torch.stack(philox(counter, (seed & _LOW, (seed >> 32) & _LOW)), dim=2)
    draws = torch.stack((words, words >> 16), dim=3) & (_DRAWS - 1)  # (rows, blocks, words, halves)
    in_order = draws.unflatten(1, (groups, 4)).transpose(2, 3).flatten(1)
    return (in_order[:, :cols] >= threshold(p)).reshape(tuple(shape))
