"""One step of LAMB over many tensors, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def lamb_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[float],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    adapt: bool,
) -> None:
    """The definition of `ops.lamb_step`, which documents the arguments."""
    beta1, beta2 = betas
    # All arithmetic is in the moments' dtype; for most tensors `to` does nothing.
    grads = [grad.to(moment.dtype) for grad, moment in zip(grads, exp_avgs, strict=True)]
    wide = [param.to(moment.dtype) for param, moment in zip(params, exp_avgs, strict=True)]
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)

    updates = torch._foreach_div(exp_avgs, [1 - beta1**step for step in steps])
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(denominators, [(1 - beta2**step) ** 0.5 for step in steps])
    torch._foreach_add_(denominators, eps)
    torch._foreach_div_(updates, denominators)
    torch._foreach_add_(updates, wide, alpha=weight_decay)
    if adapt:
        param_norms, update_norms = (torch.stack(torch._foreach_norm(tensors)) for tensors in (wide, updates))
        ratios = torch.where((param_norms > 0) & (update_norms > 0), param_norms / update_norms, 1.0)
        torch._foreach_mul_(updates, ratios.unbind())
    torch._foreach_add_(params, updates, alpha=-lr)
