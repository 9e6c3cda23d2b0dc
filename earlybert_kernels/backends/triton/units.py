"""The units of a layer that are computed, and the parts of its weights that belong to them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .matmul import Used


class Units(NamedTuple):
    """The computed units of a layer.

    Attributes:
        indices: int64 `(room,)`, sorted; of a mask, there is room for all units, and -1 in what is left over.
        number: how many they are, int32, 0-d; None if they fill the room.
    """

    indices: Tensor
    number: Tensor | None

    @property
    def room(self) -> int:
        """Units that there is room for."""
        return self.indices.shape[0]

    def used(self, size: int) -> Used | None:
        """The part of a dimension with `size` rows or columns a unit that is in use; None for all."""
        return None if self.number is None else Used(self.number, size)


def computed_units(active: Tensor | None) -> Units | None:
    """The units of int64 indices, or of a bool mask, which the host does not look at; None for all."""
    if active is None:
        return None
    if active.dtype != torch.bool:
        return Units(active, None)
    indices = torch.nonzero_static(active, size=active.shape[0], fill_value=-1).squeeze(1)
    return Units(indices, active.sum(dtype=torch.int32))


def used(units: Units | None, size: int = 1) -> Used | None:
    """As `Units.used`; all of a dimension is in use where all units are computed."""
    return None if units is None else units.used(size)


def present(units: Units | None) -> Tensor | None:
    """Which of the units that there is room for are there, bool `(room,)`; None where all are."""
    return None if units is None or units.number is None else units.indices >= 0


def take(weight: Tensor, units: Units | None) -> Tensor:
    """The computed units' part of a weight or bias `(units, ...)`; the first one's where -1 stands for none."""
    if units is None:
        return weight
    indices = units.indices
    if units.number is not None:
        indices = torch.where(indices < 0, indices[:1].clamp(min=0), indices)
    return weight.index_select(0, indices)


def put(part: Tensor, units: Units | None, total: int) -> Tensor:
    """The reverse of `take`: `(total, ...)`, 0 where a unit is not computed, whatever `part` holds for none."""
    if units is None:
        return part
    if units.number is None:
        return part.new_zeros(total, *part.shape[1:]).index_copy_(0, units.indices, part)
    # Rows that stand for none all go behind the last unit.
    rows = torch.where(units.indices < 0, total, units.indices)
    return part.new_zeros(total + 1, *part.shape[1:]).index_copy_(0, rows, part)[:total]
