"""What is right before it is timed: results against the reference in float64, compared with plain PyTorch's error."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

#: A provider's error may be so many times plain PyTorch's in the same dtype ...
TIMES_PLAIN = 2
#: ... plus so many roundings of the tensor's largest number, since plain PyTorch's error may be 0 by chance.
FLOOR_ROUNDINGS = 4
#: Plain PyTorch's own error, which everything is measured by, as a share of the tensor's largest number.
PLAIN_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class WrongResultError(AssertionError):
    """A provider's result is not as exact as it has to be."""


def check_results(
    results: Mapping[str, Tensor], plain: Mapping[str, Tensor], exact: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, float]:
    """Compares results name by name.

    Args:
        results: of the provider.
        plain: of plain PyTorch on the same inputs in the same dtype.
        exact: of the reference in float64.
        dtype: that was computed in.

    Returns:
        The largest error of each result as a share of the largest number in `exact`.

    Raises:
        WrongResultError: a result is not finite, or its error is more than `TIMES_PLAIN` times plain PyTorch's plus the
            floor; or plain PyTorch itself is off by more than `PLAIN_TOLERANCE`.
    """
    shares = {}
    for name, truth in exact.items():
        scale = max(truth.abs().max().item(), torch.finfo(dtype).tiny)
        error, plain_error = (_error(side[name], truth) for side in (results, plain))
        if not plain_error <= PLAIN_TOLERANCE[dtype] * scale:
            raise WrongResultError(f"{name}: plain PyTorch itself is off by {plain_error:.3g} of {scale:.3g}")
        allowed = TIMES_PLAIN * plain_error + FLOOR_ROUNDINGS * torch.finfo(dtype).eps * scale
        if not error <= allowed:  # also where it is not a number
            raise WrongResultError(
                f"{name}: off by {error:.3g}, allowed are {allowed:.3g}; plain PyTorch is off by {plain_error:.3g}, "
                f"and the largest number is {scale:.3g}"
            )
        shares[name] = error / scale
    return shares


def _error(result: Tensor, truth: Tensor) -> float:
    return (result.double() - truth).abs().max().item()
