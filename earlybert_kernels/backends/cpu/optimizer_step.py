"""One step of LAMB or AdamW: a single call of the kernel for all tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import extension, run


@torch.no_grad()
def optimizer_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[float | Tensor],
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    adapt: bool,
    l1: float,
    grad_factor: float | Tensor = 1.0,
) -> None:
    """See `ops.optimizer_step`."""
    written = [*params, *exp_avgs, *exp_avg_sqs]
    # The kernel goes through memory without gaps; of what has gaps it gets copies, which are copied back.
    dense = [[t.contiguous() for t in tensors] for tensors in (params, grads, exp_avgs, exp_avg_sqs)]
    tensors = [
        (p.numel(), p.data_ptr(), g.data_ptr(), m.data_ptr(), v.data_ptr(), *_scales(betas, float(step)))
        for p, g, m, v, step in zip(*dense, steps, strict=True)
    ]
    run(extension.optimizer_step, tensors, float(lr), *betas, eps, weight_decay, adapt, l1, float(grad_factor))
    for tensor, copy in zip(written, [*dense[0], *dense[2], *dense[3]], strict=True):
        if copy is not tensor:
            tensor.copy_(copy)
    # Lets autograd notice when one of them was saved for a backward pass that is still to come.
    torch.autograd.graph.increment_version(written)


def _scales(betas: tuple[float, float], step: float) -> tuple[float, float]:
    """What undoes the bias towards 0 of m, and of the root of v."""
    beta1, beta2 = betas
    return 1 / (1 - beta1**step), (1 - beta2**step) ** -0.5
