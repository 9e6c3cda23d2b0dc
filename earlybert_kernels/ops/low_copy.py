"""The copy in the dtype of the products that a sublayer writes of its result, and that the next one takes beside it.

Under autocast the residual stream is float32, and what is multiplied is not. A sublayer ends with a layer norm, which
has the result in registers: writing it twice there is less than casting it in the next sublayer, by a read of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .checks import check_shape


def check_low(op: str, x_low: Tensor | None, x: Tensor) -> None:
    """Raises ValueError unless the copy has x's shape."""
    if x_low is not None:
        check_shape(op, "x_low", x_low, tuple(x.shape), "the shape of x")


def usable(x_low: Tensor | None, x: Tensor, weight: Tensor) -> Tensor | None:
    """The copy, if x is to be cast to its dtype."""
    return x_low if x_low is not None and is_cast(x, weight) and x_low.dtype == weight.dtype else None


def is_cast(x: Tensor, weight: Tensor) -> bool:
    """Whether what is multiplied by the weight is a copy of x."""
    return x.dtype != weight.dtype


def empty_low(out: Tensor, weight: Tensor, return_low: bool) -> Tensor:
    """What the compiler knows of the copy of `out`: its shape, or an empty one's where there is none."""
    return weight.new_empty(out.shape if return_low and is_cast(out, weight) else 0)


def returned(results: tuple[Tensor, ...], weight: Tensor, return_low: bool, dtype: torch.dtype) -> Any:
    """What an op returns in `dtype` of its backend's results, the first of which is its own and the last the copy."""
    out, *_, low = results
    own = out.to(dtype)
    return (own, low if is_cast(out, weight) else None) if return_low else own


def without_low(definition: Callable[..., Tensor]) -> Callable[..., Any]:
    """A definition that is called as the backends' implementations are, and leaves casting to torch."""

    def run(*arguments: Any, x_low: Tensor | None, return_low: bool, **options: Any) -> Any:
        out = definition(*arguments, **options)
        return (out, None) if return_low else out

    return run
