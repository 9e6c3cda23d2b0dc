"""What is right before it is timed: results against the reference in float64, compared with plain PyTorch's error."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

#: A provider's error may be so many times plain PyTorch's in the same dtype ...
TIMES_PLAIN = 2
#: ... plus so many roundings of the tensor's largest number, since plain PyTorch's error may be 0 by chance.
FLOOR_ROUNDINGS = 4
#: What torch itself may be off by, eager or compiled, as a share of the tensor's largest number. torch.compile on a CPU
#: sums the gradient of a bias over thousands of tokens in one running sum: ten times eager's error, and no bug.
TORCH_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class WrongResultError(AssertionError):
    """A provider's result is not as exact as it has to be."""


def check_results(
    results: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    dtype: torch.dtype,
    *,
    by_torch: bool = False,
) -> dict[str, float]:
    """Compares results name by name.

    Args:
        results: of the provider.
        plain: of plain PyTorch on the same inputs in the same dtype.
        exact: of the reference in float64.
        dtype: that was computed in.
        by_torch: whether the provider is torch itself, which is held to `TORCH_TOLERANCE` only.

    Returns:
        The largest error of each result as a share of the largest number in `exact`.

    Raises:
        WrongResultError: a result is not finite, or its error is more than `TIMES_PLAIN` times plain PyTorch's plus the
            floor; or torch itself is off by more than `TORCH_TOLERANCE`.
    """
    shares = {}
    for name, truth in exact.items():
        scale = max(truth.abs().max().item(), torch.finfo(dtype).tiny)
        error, plain_error = (_error(side[name], truth) for side in (results, plain))
        tolerance = TORCH_TOLERANCE[dtype] * scale
        if not plain_error <= tolerance:
            raise WrongResultError(f"{name}: plain PyTorch itself is off by {plain_error:.3g} of {scale:.3g}")
        allowed = TIMES_PLAIN * plain_error + FLOOR_ROUNDINGS * torch.finfo(dtype).eps * scale
        if by_torch:
            allowed = tolerance
        if not error <= allowed:  # also where it is not a number
            raise WrongResultError(
                f"{name}: off by {error:.3g}, allowed are {allowed:.3g}; plain PyTorch is off by {plain_error:.3g}, "
                f"and the largest number is {scale:.3g}"
            )
        shares[name] = error / scale
    return shares


def _error(result: Tensor, truth: Tensor) -> float:
    return (result.double() - truth).abs().max().item()
