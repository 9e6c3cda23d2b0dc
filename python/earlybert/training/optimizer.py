"""The optimizer of a stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import earlybert_kernels as ek


def make_optimizer(
    name: str,
    weights: Sequence[nn.Parameter],
    gates: Sequence[nn.Parameter],
    *,
    learning_rate: float,
    weight_decay: float,
    gate_learning_rate: float,
    gate_l1: float,
    is_converted: bool,
) -> torch.optim.Optimizer:
    """The optimizer of that name.

    Args:
        name: `"adamw"`, `ek.AdamW` for a converted model, torch's for a stock one; or `"lamb"`, `ek.Lamb` with trust
            ratios of the weight matrices alone.
        weights: of which the matrices have weight decay; BERT's biases and LayerNorm parameters are its only vectors.
        gates: without weight decay; the library's own optimizers add the gradient of `gate_l1 * sum|c|`.
        learning_rate: of the weights.
        weight_decay: of the matrices.
        gate_learning_rate: of the gates.
        gate_l1: lambda of their penalty.
        is_converted: whether the model has this library's modules.
    """
    matrices, vectors = ([p for p in weights if (p.dim() > 1) == is_matrix] for is_matrix in (True, False))
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if gates:
        groups.append({"params": list(gates), "weight_decay": 0.0, "lr": gate_learning_rate, "l1": gate_l1})
    if name == "lamb":
        groups = [{**group, "adapt": group["params"] is matrices} for group in groups]
        return ek.Lamb([group for group in groups if group["params"]], lr=learning_rate)
    if is_converted:
        return ek.AdamW(groups, lr=learning_rate)
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
