"""One training step: forward, backward, clipping and the optimizer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from earlybert.data import Batch

from .record import wait_for

#: The default of transformers' Trainer.
_MAX_GRAD_NORM = 1.0


def training_step(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Callable[[Batch], None]:
    """A step of a model, put into training mode, with a fused AdamW of its own; it returns when the device is done.

    Args:
        model: in float32, on the device.
        device: what to wait for.
        dtype: what the forward pass computes in (autocast).
    """
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-5, fused=True)

    def step(batch: Batch) -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        wait_for(device)

    return step
