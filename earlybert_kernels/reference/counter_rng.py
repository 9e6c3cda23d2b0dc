"""Which elements a dropout seed keeps: the counter-based rule that the kernels share, in plain PyTorch.

Element i of a tensor (its index in row-major order) draws word `i % 4` of Philox-4x32-10 at counter
`(i // 4, 0)` under the 64-bit key `seed`, and is kept when that word is at least `threshold(p)`. All 32
bits take part, so p = 0.1 drops 0.1 of the elements to within 2^-32. A mask is never stored: whoever needs
it again regenerates it from the seed.

Philox is from Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def threshold(p: float) -> int:
    """The smallest 32-bit word that dropout with probability `p` keeps, for 0 <= p < 1."""
    return int(p * 2.0**32)


def philox(counter: Sequence[Tensor | int], key: Sequence[Tensor | int]) -> tuple[Tensor | int, ...]:
    """Philox-4x32-10.

    Args:
        counter: four words, each an int or an int64 tensor of values in [0, 2^32).
        key: two words, likewise.

    Returns:
        Four words, likewise, of the broadcast shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap, which leaves their 64 bits right; only the shift must drop copies of the sign.
        a, b = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((b >> 32) & _LOW) ^ c1 ^ k0, b & _LOW, ((a >> 32) & _LOW) ^ c3 ^ k1, a & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return c0, c1, c2, c3


def keep_mask(seed: int | Tensor, shape: Sequence[int], p: float, device: torch.device | str | None = None) -> Tensor:
    """The elements that dropout with probability `p` keeps under `seed`.

    Args:
        seed: a 64-bit integer, or a 0-d int64 tensor.
        shape: of the tensor that is dropped from.
        p: probability of dropping an element, in [0, 1).
        device: of the result.

    Returns:
        bool, of shape `shape`; True = kept.
    """
    count = math.prod(shape)
    blocks = torch.arange((count + 3) // 4, dtype=torch.int64, device=device)
    key = (seed & _LOW, (seed >> 32) & _LOW)
    words = philox((blocks & _LOW, blocks >> 32, torch.zeros_like(blocks), torch.zeros_like(blocks)), key)
    return (torch.stack(words, dim=1).flatten()[:count] >= threshold(p)).view(tuple(shape))
