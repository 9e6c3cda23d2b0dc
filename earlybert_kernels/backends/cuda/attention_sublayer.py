"""The attention sublayer of this backend's parts."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from ..sublayers import attention_sublayer
from . import attention, parts

forward, backward = partial(attention_sublayer.forward, parts.PARTS), partial(attention_sublayer.backward, parts.PARTS)


def refuses(x: Tensor, cu_seqlens: Tensor, w_q: Tensor, *others: Any, head_size: int, max_seqlen: int) -> str | None:
    """Why these tensors, in the op's order, cannot be taken (device, dtype, sizes, a mask), or None."""
    *linears, norm_weight, norm_bias, active_heads, head_gates = others
    reason = parts.refuses(x, w_q, norm_weight, norm_bias, cu_seqlens, *linears, active_heads, head_gates)
    return reason or attention.refuses_sizes(w_q, head_size, max_seqlen)
