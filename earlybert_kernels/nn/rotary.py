"""Rotary positions: queries and keys turned by an angle that says where they stand (Su et al., arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor

#: The cosine and the sine of each token's angles, `(T, D)` each, whose second half is the first one again.
Rotary = tuple[Tensor, Tensor]


def rotate(heads: Tensor, rotary: Rotary) -> Tensor:
    """`heads * cos + turned * sin`, where a head `(a, b)` of two halves turned is `(-b, a)`.

    Args:
        heads: `(T, ..., D)`, any floating dtype; arithmetic is in float32 or above.

    Returns:
        The same shape and dtype.
    """
    cos, sin = (t.view(t.shape[0], *(1,) * (heads.dim() - 2), t.shape[1]) for t in rotary)
    wide = heads.to(torch.promote_types(heads.dtype, torch.float32))
    a, b = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat([-b, a], dim=-1) * sin).to(heads.dtype)
