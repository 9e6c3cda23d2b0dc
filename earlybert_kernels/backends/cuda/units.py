"""The computed units' part of a weight, and the reverse.

Units are int64 `(k,)`, no unit twice, or None for all. What is no unit (-1, say) chooses none.
"""

from __future__ import annotations

from torch import Tensor

from . import gather_units


def take(weight: Tensor, units: Tensor | None) -> Tensor:
    """The computed units' part of a weight or bias `(units, ...)`; 0 where none is chosen."""
    if units is None:
        return weight
    return gather_units.gather([weight], [units], [0], [1], [None])[0]


def put(part: Tensor, units: Tensor | None, total: int) -> Tensor:
    """The reverse of `take`: `(total, ...)`, 0 where a unit is not computed, whatever `part` holds for none."""
    if units is None:
        return part
    shape = (total, *part.shape[1:])
    return gather_units.scatter([part], [shape], [units], [0], [1], [None], [None])[0][0]
