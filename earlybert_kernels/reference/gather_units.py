"""The chosen units' parts of many tensors, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..units import head_rows, per_column


def gather_units(
    tensors: Sequence[Tensor],
    units: Sequence[Tensor | None],
    dims: Sequence[int],
    sizes: Sequence[int],
    gates: Sequence[Tensor | None],
) -> list[Tensor]:
    """The definition of `ops.gather_units`, which documents the arguments."""
    return [_part(*arguments) for arguments in zip(tensors, units, dims, sizes, gates, strict=True)]


def _part(tensor: Tensor, units: Tensor | None, dim: int, size: int, gates: Tensor | None) -> Tensor:
    if units is None:
        part = tensor.clone()
    else:
        part = tensor.index_select(dim, head_rows(units, size))
        gates = None if gates is None else gates.index_select(0, units)
    if gates is None:
        return part
    behind = (1,) * (tensor.dim() - dim - 1)
    return (part * per_column(gates, size).view(-1, *behind)).to(tensor.dtype)
