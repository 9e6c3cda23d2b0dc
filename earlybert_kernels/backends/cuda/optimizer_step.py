"""One step of LAMB or AdamW over many tensors: two launches for every 60 of them, one without trust ratios."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import address, cuda


def refuses(*tensors: Tensor) -> str | None:
    """Why params, grads and both moments, so many of each, cannot be taken (device, dtype), or None."""
    moments = {tensor.dtype for tensor in tensors[len(tensors) // 2 :]}
    if moments != {torch.float32}:
        return f"it takes moments in float32, got {', '.join(map(str, moments))}"
    return cuda.refuses(*tensors)


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
    """See `ops.optimizer_step`. Of step counts, learning rate and factor, the kernels read those on the device."""
    first = params[0]
    if {grad.dtype for grad in grads} != {first.dtype}:
        grads = [grad.float() for grad in grads]
    written = [*params, *exp_avgs, *exp_avg_sqs]
    # The kernels go through memory without gaps; of what has gaps they get copies, which are copied back.
    dense = [[t.contiguous() for t in tensors] for tensors in (params, grads, exp_avgs, exp_avg_sqs)]
    (lr_at, lr), (factor_at, factor), *places = (_where(number, first.device) for number in (lr, grad_factor, *steps))
    tensors = [
        (p.numel(), p.data_ptr(), g.data_ptr(), m.data_ptr(), v.data_ptr(), address(at), number)
        for p, g, m, v, (at, number) in zip(*dense, places, strict=True)
    ]
    partials = None
    if adapt:
        chunks = sum(cuda.extension.optimizer_step_chunks(param.numel()) for param in params)
        partials = torch.empty(chunks, 2, dtype=torch.float32, device=first.device)
    cuda.extension.optimizer_step(
        *cuda.launch(first),
        cuda.code(first),
        cuda.code(grads[0]),
        tensors,
        address(lr_at),
        lr,
        *betas,
        eps,
        weight_decay,
        l1,
        address(factor_at),
        factor,
        adapt,
        address(partials),
    )
    for tensor, copy in zip(written, [*dense[0], *dense[2], *dense[3]], strict=True):
        if copy is not tensor:
            tensor.copy_(copy)
    # Lets autograd notice when one of them was saved for a backward pass that is still to come.
    torch.autograd.graph.increment_version(written)


def _where(number: float | Tensor, device: torch.device) -> tuple[Tensor | None, float]:
    """A number as a float32 tensor on the device, where it is there already, or as it is."""
    if isinstance(number, Tensor) and number.device == device:
        return number.float(), 0.0
    return None, float(number)
