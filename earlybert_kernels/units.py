"""Arithmetic on the units of a layer: gates folded into weights, and the weight rows of kept heads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import overload

import torch
from torch import Tensor


@overload
def indices(active: Tensor) -> Tensor: ...
@overload
def indices(active: Tensor | None) -> Tensor | None: ...
def indices(active: Tensor | None) -> Tensor | None:
    """The units that a bool mask `(units,)` has as True, int64 `(k,)`; indices and None as they are.

    On a GPU the host waits for the device to count them.
    """
    return active.nonzero().squeeze(1) if active is not None and active.dtype == torch.bool else active


def unit_list(active: Tensor | None, units: int) -> list[int]:
    """The active ones of a layer's units, of which None stands for all, as a list on the host."""
    return list(range(units)) if active is None else indices(active).tolist()


def unit_indices(units: Iterable[int], device: torch.device) -> Tensor:
    """The units' numbers, int64 `(k,)`."""
    return torch.tensor(list(units), dtype=torch.long, device=device)


def repeated(units: Tensor, times: int, count: int) -> Tensor:
    """Where some of `count` units, int64 `(k,)`, are if all stand there so many times: `(times * k,)`.

    As in a weight that is query, key and value, one behind the other, in each of which every head stands.
    """
    if times == 1:
        return units
    return (torch.arange(times, device=units.device)[:, None] * count + units).reshape(-1)


def check_gate_dtype(gates: Tensor) -> Tensor:
    """Returns the gates, or raises TypeError if they were cast to half precision, in which they could not move."""
    if gates.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"gates are {gates.dtype}: a training step of 2e-5 is lost in half precision near 1. Keep the model's "
            "parameters in float32 and use autocast, or call remove_gates(model) before casting the model."
        )
    return gates


def per_column(gates: Tensor, columns: int) -> Tensor:
    """`(units,)` -> `(units * columns,)`: the gate of each weight column, `columns` of them a unit."""
    return gates.unsqueeze(1).expand(-1, columns).reshape(-1)


def fold_gates(weight: Tensor, gates: Tensor, columns: int = 1) -> Tensor:
    """Folds the gates of the units into the weight that reads them: `(h * c) W^T = h (W * c)^T`.

    The forward cost follows the weights and not the tokens, and so does the gates' gradient.

    Args:
        weight: `(E, units * columns)` of the linear layer behind the gated units.
        gates: float32 `(units,)`.
        columns: columns of `weight` that belong to one unit (head size; 1 for neurons).

    Returns:
        The gated weight, in `weight`'s dtype.

    Raises:
        TypeError: the gates were cast to half precision.
    """
    return (weight * per_column(check_gate_dtype(gates), columns)).to(weight.dtype)


def head_rows(heads: Tensor, head_size: int) -> Tensor:
    """int64 `(k,)` heads -> int64 `(k * head_size,)`: their rows in query, key and value."""
    return (heads.unsqueeze(1) * head_size + torch.arange(head_size, device=heads.device)).reshape(-1)
