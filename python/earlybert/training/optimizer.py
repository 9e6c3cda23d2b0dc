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
    max_grad_norm: float,
    gate_learning_rate: float,
    gate_l1: float,
    gate_penalty: str,
    is_converted: bool,
) -> torch.optim.Optimizer:
    """The optimizer of that name.

    Args:
        name: `"adamw"`, `ek.AdamW` for a converted model, torch's for a stock one; or `"lamb"`, `ek.Lamb` with trust
            ratios of the weight matrices alone.
        weights: of which the matrices have weight decay; BERT's biases and LayerNorm parameters are its only vectors.
        gates: without weight decay, with a penalty `gate_l1 * sum|c|` that is no term of the loss: as one it would be
            added once per accumulated batch, multiplied by the loss scale, and seen in the logged loss.
        learning_rate: of the weights.
        weight_decay: of the matrices.
        max_grad_norm: longer gradients of the weights, all together, are cut to this norm; 0 for none.
        gate_learning_rate: of the gates.
        gate_l1: lambda of their penalty.
        gate_penalty: `"subgradient"` adds `gate_l1 * sign(c)` to the gates' gradients, as EarlyBERT does (arXiv
            2101.00063, section 3.1); `"proximal"` shrinks them after each step, which makes zeros; see `_shrink`.
        is_converted: whether the model has this library's modules.
    """
    matrices, vectors = ([p for p in weights if (p.dim() > 1) == is_matrix] for is_matrix in (True, False))
    by_subgradient = gate_penalty == "subgradient"
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": weight_decay, "max_grad_norm": max_grad_norm},
        {"params": vectors, "weight_decay": 0.0, "max_grad_norm": max_grad_norm},
    ]
    if gates:
        l1 = gate_l1 if by_subgradient else 0.0
        groups.append({"params": list(gates), "weight_decay": 0.0, "lr": gate_learning_rate, "l1": l1})
    optimizer: torch.optim.Optimizer
    if name == "lamb":
        groups = [{**group, "adapt": group["params"] is matrices} for group in groups]
        optimizer = ek.Lamb([group for group in groups if group["params"]], lr=learning_rate)
    elif is_converted:
        optimizer = ek.AdamW(groups, lr=learning_rate)
    else:  # it knows neither of the groups' options that are ours
        optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=True)
        if max_grad_norm:
            optimizer.register_step_pre_hook(lambda *_: _clip(weights, max_grad_norm))
        if gates and by_subgradient:
            optimizer.register_step_pre_hook(lambda optimizer, *_: _add_subgradient(optimizer, gate_l1))
    if gates and not by_subgradient:
        optimizer.register_step_post_hook(lambda optimizer, *_: _shrink(optimizer, gate_l1))
    return optimizer


def _clip(weights: Sequence[nn.Parameter], max_norm: float) -> None:
    nn.utils.clip_grad_norm_(weights, max_norm)


@torch.no_grad()
def _add_subgradient(optimizer: torch.optim.Optimizer, l1: float) -> None:
    """Adds the penalty's gradient to those of the last group."""
    for gate in optimizer.param_groups[-1]["params"]:
        if gate.grad is not None:
            gate.grad.add_(gate.sign(), alpha=l1)


@torch.no_grad()
def _shrink(optimizer: torch.optim.Optimizer, l1: float) -> None:
    """The proximal step of the penalty for the last group, in the metric of the Adam step that has been taken.

    `c = sign(c) max(0, |c| - lr l1 / (sqrt(v) + eps))`, v the second moment without its bias towards 0: the minimum of
    `l1 |c|` plus the quadratic that Adam's step is the minimum of (Yun, Lozano and Yang, "Adaptive Proximal Gradient
    Methods for Structured Neural Networks", NeurIPS 2021). Gates that the loss hardly depends on shrink fastest.
    """
    group = optimizer.param_groups[-1]
    for gate in group["params"]:
        state = optimizer.state.get(gate)
        if not state:
            continue  # no gradient has reached it
        second_moment = state["exp_avg_sq"] / (1 - group["betas"][1] ** state["step"])
        threshold = group["lr"] * l1 / second_moment.sqrt_().add_(group["eps"])
        # GradScaler calls the steps of torch's fused optimizers, and so this, also where they change nothing.
        if (skipped := getattr(optimizer, "found_inf", None)) is not None:
            threshold.masked_fill_(skipped.bool(), 0)
        gate.sub_(gate.clamp(-threshold, threshold))
