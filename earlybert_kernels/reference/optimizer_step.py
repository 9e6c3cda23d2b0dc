"""One step of LAMB or AdamW over many tensors, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def optimizer_step(
    params: list[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: Sequence[float | Tensor],
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    adapt: bool,
    l1: float = 0.0,
    grad_factor: float | Tensor = 1.0,
) -> None:
    """The definition of `ops.optimizer_step`, which documents the arguments."""
    beta1, beta2 = betas
    counts, (rate,) = _numbers(steps), _numbers([lr])
    # All arithmetic is in the moments' dtype; for most tensors `to` does nothing.
    grads = [grad.to(moment.dtype) for grad, moment in zip(grads, exp_avgs, strict=True)]
    wide = [param.to(moment.dtype) for param, moment in zip(params, exp_avgs, strict=True)]
    if isinstance(grad_factor, Tensor) or grad_factor != 1:
        grads = torch._foreach_mul(grads, grad_factor)
    if l1:
        grads = torch._foreach_add(grads, torch._foreach_sign(wide), alpha=l1)
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)

    updates = torch._foreach_div(exp_avgs, _biases(beta1, counts, 1.0))
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(denominators, _biases(beta2, counts, 0.5))
    torch._foreach_add_(denominators, eps)
    torch._foreach_div_(updates, denominators)
    torch._foreach_add_(updates, wide, alpha=weight_decay)
    if adapt:
        param_norms, update_norms = (torch.stack(torch._foreach_norm(tensors)) for tensors in (wide, updates))
        ratios = torch.where((param_norms > 0) & (update_norms > 0), param_norms / update_norms, 1.0)
        torch._foreach_mul_(updates, ratios.unbind())
    if isinstance(rate, Tensor):
        torch._foreach_mul_(updates, rate)
        torch._foreach_sub_(params, updates)
    else:
        torch._foreach_add_(params, updates, alpha=-rate)


def _numbers(numbers: Sequence[float | Tensor]) -> list[float] | Tensor:
    """As Python's numbers; those on a GPU as one float64 tensor there, because nothing should wait for them."""
    there = [number for number in numbers if isinstance(number, Tensor) and number.device.type != "cpu"]
    if len(there) == len(numbers):
        return torch.stack(there).double()
    return [float(number) for number in numbers]


def _biases(beta: float, steps: list[float] | Tensor, power: float) -> list[float] | tuple[Tensor, ...]:
    """`(1 - beta^step)^power` of each step."""
    if isinstance(steps, Tensor):
        return ((1 - beta**steps) ** power).unbind()
    return [(1 - beta**step) ** power for step in steps]
