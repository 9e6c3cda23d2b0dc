"""How many floating-point operations the ops take, for `torch.utils.flop_counter` and the tools built on it.

Counted as torch counts its own: two a multiplication and addition of a matrix product, nothing else. Units that are not
computed do not count, nor does padding, which there is none of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import register_flop_formula

#: From the arguments of a call, by name, to a number.
Formula = Callable[[dict[str, Any]], int]


def register(packet: torch._ops.OpOverloadPacket, formula: Formula) -> None:
    """Tells torch what a call of any overload of `packet` takes; its overloads share their arguments' names."""
    names = [argument.name for argument in getattr(packet, packet.overloads()[0])._schema.arguments]

    def count(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return formula(dict(zip(names, args, strict=False)) | kwargs)

    register_flop_formula(packet, get_raw=True)(count)


def linear(rows: int, inputs: int, outputs: int) -> int:
    """A matrix product of `(rows, inputs)` and `(inputs, outputs)`; its backward has two of as many operations."""
    return 2 * rows * inputs * outputs


def units(active: Tensor | None, count: int) -> int:
    """How many of `count` units are computed, given their indices, or a mask of them, or None for all."""
    if active is None:
        return count
    if active.dtype != torch.bool:
        return active.shape[0]
    return count if isinstance(active, FakeTensor) else int(active.sum())


def pairs(cu_seqlens: Tensor, max_seqlen: int, queries: Tensor | int | None = None) -> int:
    """Pairs of a query and a key in the same sequence.

    Args:
        cu_seqlens: int32 `(B + 1,)`, of the keys. Of one that only the compiler sees every sequence is a longest one.
        max_seqlen: keys of the longest sequence.
        queries: offsets like `cu_seqlens`, or a number a sequence; None for as many as keys.
    """
    if isinstance(cu_seqlens, FakeTensor):
        longest = queries if isinstance(queries, int) else max_seqlen
        return (cu_seqlens.shape[0] - 1) * max_seqlen * longest
    keys = cu_seqlens.diff().long()
    per_sequence = keys if queries is None else queries if isinstance(queries, int) else queries.diff()
    return int((keys * per_sequence).sum())


def attention_products(pairs: int, width: int, products: int) -> int:
    """Matrix products over all pairs: two forward, and five backward, which computes the scores anew.

    Args:
        pairs: of a query and a key.
        width: values of all computed heads together.
        products: how many.
    """
    return 2 * products * pairs * width
