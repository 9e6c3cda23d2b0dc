"""Where the seeds of dropout masks come from."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_seed(dropout_p: float, device: torch.device) -> Tensor | None:
    """A fresh seed from torch's generator, int64 0-d on `device`; None when nothing is dropped.

    A tensor and not a number, so that a compiled or captured step draws a new one each time it runs.
    """
    if dropout_p == 0.0:
        return None
    return torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device=device)
