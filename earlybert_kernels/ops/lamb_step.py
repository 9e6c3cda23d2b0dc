"""One step of LAMB over many tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import reference
from ..backends import cpu
from .dispatch import choose, register

_OP = "lamb_step"


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
    backend: str | None = None,
) -> None:
    """Changes `params` and their moments in place, as algorithm 2 of LAMB says (You et al., arXiv 1904.00962).

    Of every tensor: `m = beta1 m + (1 - beta1) g` and `v = beta2 v + (1 - beta2) g^2`; both are divided by
    `1 - beta^step`, which takes out their bias towards 0; `u = m / (sqrt(v) + eps) + weight_decay p`; and
    `p = p - lr |p| / |u| u`. The trust ratio `|p| / |u|` is 1 where one of the norms is 0.

    Args:
        params: any shapes, one floating dtype, one device.
        grads: one for each, of its shape.
        exp_avgs: m, of the params' shapes, in the dtype to compute in.
        exp_avg_sqs: v, likewise.
        steps: the number of this step for each tensor, from 1.
        lr: learning rate.
        betas: decay of m and v, each in [0, 1).
        eps: greater than 0.
        weight_decay: the factor of p in u.
        adapt: by the trust ratio; if not, it is 1.
        backend: one of `ops.backends("lamb_step")`; default: the best that takes these tensors.

    Raises:
        ValueError: the lists differ in length, or shapes or devices do not fit together.
        RuntimeError: the backend that was asked for cannot run this call.
    """
    if not params:
        return
    device = params[0].device
    for param, grad, *moments in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        if not param.shape == grad.shape == moments[0].shape == moments[1].shape:
            raise ValueError(f"{_OP}: a parameter of shape {tuple(param.shape)} does not fit its gradient or moments")
        if not device == param.device == grad.device == moments[0].device == moments[1].device:
            raise ValueError(f"{_OP}: tensors are on several devices")
    if len(steps) != len(params):
        raise ValueError(f"{_OP}: got {len(steps)} steps for {len(params)} parameters")
    run = choose(_OP, backend, *params, *grads, *exp_avgs, *exp_avg_sqs)
    options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapt": adapt}
    run(params, grads, exp_avgs, exp_avg_sqs, steps, **options)


register(_OP, "reference", reference.lamb_step)
register(_OP, "cpu", cpu.lamb_step.lamb_step, unavailable=cpu.unavailable, refuses=cpu.refuses)
