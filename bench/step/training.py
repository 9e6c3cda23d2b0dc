"""One training step: forward, backward, clipping and the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

import earlybert_kernels as ek

from ..provenance import wait_for

#: The default of transformers' Trainer.
_MAX_GRAD_NORM = 1.0


def training_step(
    model: nn.Module, device: torch.device, dtype: torch.dtype, *, stock: bool, captured: bool = False
) -> Callable[[Mapping[str, Any]], None]:
    """A step of a model, put into training mode, with an AdamW of its own; it returns when the device is done.

    Args:
        model: in float32, on the device.
        device: what to wait for.
        dtype: what the forward pass computes in (autocast).
        stock: step by torch's fused AdamW behind `clip_grad_norm_`; if not by `ek.AdamW`, which cuts gradients itself.
        captured: capture the step in a CUDA graph, one for each shape of a batch.
    """
    parameters = list(model.train().parameters())
    optimizer: torch.optim.Optimizer
    if stock:
        optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    else:
        optimizer = ek.AdamW(parameters, lr=1e-5, max_grad_norm=_MAX_GRAD_NORM)

    def train(batch: Mapping[str, Any]) -> torch.Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = model(**batch).loss
        loss.backward()
        if stock:
            nn.utils.clip_grad_norm_(parameters, _MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    run = ek.CapturedStep(model, optimizer, train) if captured else train

    def step(batch: Mapping[str, Any]) -> None:
        run(batch)
        wait_for(device)

    return step
