"""The feed-forward sublayer of this backend's parts."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ..sublayers import feed_forward_sublayer
from . import parts

forward, backward = (
    partial(feed_forward_sublayer.forward, parts.PARTS),
    partial(feed_forward_sublayer.backward, parts.PARTS),
)


def refuses(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *units: Tensor | None,
) -> str | None:
    """Why these tensors, in the op's order, cannot be taken (device, dtype, size, a mask), or None."""
    return parts.refuses(x, w_in, norm_weight, norm_bias, b_in, w_out, b_out, *units)
