"""How far two masks are apart, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def ticket_distance(a: Tensor, b: Tensor) -> Tensor:
    """The definition of `ops.ticket_distance`, which documents the arguments."""
    kept = a.sum() + b.sum()
    return torch.where(kept > 0, (a ^ b).sum().double() / kept, 0.0)
