"""Gates folded into the weight behind them, and that weight's columns of the computed units, in one pass over it.

`(h * c) W^T = h (W * c)^T`: so a gate costs no pass over activations; its gradient is
`sum over o and its columns j of dW_folded[o, j] W[o, j]`, in the pass that writes the weight's gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import gather_units


def fold(weight: Tensor, units: Tensor | None, gates: Tensor | None, size: int = 1) -> Tensor:
    """The computed units' columns of a weight, each times its unit's gate.

    Args:
        weight: `(E, units * size)`.
        units: the computed ones, as in `units`; None for all.
        gates: float32 `(units,)`, one for every unit, computed or not; None for 1.
        size: columns of a unit.

    Returns:
        `(E, k * size)`, contiguous, 0 where none is chosen; or `weight` itself where nothing is to be done.
    """
    if units is None and gates is None:
        return weight
    return gather_units.gather([weight], [units], [1], [size], [gates])[0]


def unfold(
    grad_folded: Tensor, weight: Tensor, units: Tensor | None, gates: Tensor | None, size: int = 1
) -> tuple[Tensor, Tensor]:
    """The gradients of `fold`'s weight and gates, 0 for units that are not computed.

    Args:
        grad_folded: `(E, k * size)`; what it holds for none is not read.
        weight, units, gates, size: as in `fold`.

    Returns:
        `(E, units * size)`, and float32 `(units,)`, or `(0,)` without gates.
    """
    none = torch.empty(0, dtype=torch.float32, device=weight.device)
    if units is None and gates is None:
        return grad_folded, none
    (grad_weight,), (grad_gates,) = gather_units.scatter(
        [grad_folded], [weight.shape], [units], [1], [size], [gates], [None if gates is None else weight]
    )
    return grad_weight, none if grad_gates is None else grad_gates
