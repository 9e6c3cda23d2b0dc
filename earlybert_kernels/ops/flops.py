"""What `torch.utils.flop_counter` counts of the ops: matrix products, as everywhere in it, of the active units."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses import FakeTensor


def active_units(active: Tensor | None, units: int) -> int:
    """How many of the units are computed, by sorted indices, a bool mask, or None for all.

    A mask without values (on the meta device, say) counts as all. On a GPU the host waits for a mask's values.
    """
    if active is None:
        return units
    return int(active.sum()) if active.dtype == torch.bool and _has_values(active) else active.shape[0]


def attention_flops(
    cu_seqlens: Tensor,
    max_seqlen: int,
    cu_seqlens_q: Tensor | None,
    max_seqlen_q: int | None,
    size: int,
    products: int,
    window: int | None = None,
) -> int:
    """FLOPs of attention over packed sequences.

    Args:
        cu_seqlens, max_seqlen: where keys and values are; offsets without values count as so many longest sequences,
            as torch's own formulas take them, and those on a GPU make the host wait.
        cu_seqlens_q, max_seqlen_q: where the queries are, or None where the keys are.
        size: active heads times head size.
        products: 2 forward; 5 backward, which computes the scores once more, as torch's fused attention does.
        window: as in `ops.attention`.
    """
    keys = _lengths(cu_seqlens, max_seqlen)
    queries = keys if cu_seqlens_q is None or max_seqlen_q is None else _lengths(cu_seqlens_q, max_seqlen_q)
    return 2 * products * size * sum(_scores(q, k, window) for q, k in zip(queries, keys, strict=True))


def _scores(queries: int, keys: int, window: int | None) -> int:
    if window is None:
        return queries * keys
    return sum(max(0, min(keys, place + window + 1) - max(0, place - window)) for place in range(queries))


def _lengths(offsets: Tensor, longest: int) -> list[int]:
    return offsets.diff().tolist() if _has_values(offsets) else [longest] * (offsets.shape[0] - 1)


def _has_values(x: Tensor) -> bool:
    return not (x.is_meta or isinstance(x, FakeTensor))
