"""One step of LAMB or AdamW over many tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from .. import reference
from ..backends import backends_with
from .custom import define_in_place
from .dispatch import choose, register, register_reference

_OP = "optimizer_step"


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
    l1: float = 0.0,
    grad_factor: float | Tensor = 1.0,
    backend: str | None = None,
) -> None:
    """Changes `params` and their moments in place, as algorithm 2 of LAMB says (You et al., arXiv 1904.00962).

    Without `adapt` as AdamW does (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2).

    Of every tensor: `m = beta1 m + (1 - beta1) g` and `v = beta2 v + (1 - beta2) g^2`; both are divided by
    `1 - beta^step`, which takes out their bias towards 0; `u = m / (sqrt(v) + eps) + weight_decay p`; and
    `p = p - lr |p| / |u| u`. The trust ratio `|p| / |u|` is 1 where one of the norms is 0.

    In all of that g is `grad_factor grad + l1 sign(p)`. The factor is what cuts gradients to a norm, which so needs no
    pass over them that writes. The rest is the gradient of a penalty `l1 |p|_1`, as EarlyBERT has one on its gates
    (Chen et al., arXiv 2101.00063, section 3.1): here it depends neither on how many gradients were accumulated nor on
    how the loss was scaled, and needs no pass of its own.

    Nothing is read back from a GPU, so that a CUDA graph can capture the step; with `steps`, `lr` and `grad_factor` on
    the GPU a replay finds their new values.

    Args:
        params: any shapes, one floating dtype, one device.
        grads: one for each, of its shape.
        exp_avgs: m, of the params' shapes, in the dtype to compute in.
        exp_avg_sqs: v, likewise.
        steps: the number of this step for each tensor, from 1; a float, or a tensor without dimensions, on the CPU or
            where the params are.
        lr: learning rate; likewise.
        betas: decay of m and v, each in [0, 1).
        eps: greater than 0.
        weight_decay: the factor of p in u.
        adapt: by the trust ratio; if not, it is 1.
        l1: factor of the penalty.
        grad_factor: a float, or a tensor without dimensions, on the CPU or where the params are.
        backend: one of `ops.backends("optimizer_step")`; default: the best that takes these tensors.

    Raises:
        ValueError: the lists differ in length, or shapes, dtypes or devices do not fit together.
        BackendUnavailableError: the backend that was asked for cannot run this call.
    """
    if not params:
        return
    device, dtype = params[0].device, params[0].dtype
    for param, grad, *moments in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        if not param.shape == grad.shape == moments[0].shape == moments[1].shape:
            raise ValueError(f"{_OP}: a parameter of shape {tuple(param.shape)} does not fit its gradient or moments")
        if not device == param.device == grad.device == moments[0].device == moments[1].device:
            raise ValueError(f"{_OP}: tensors are on several devices")
        if param.dtype != dtype:
            raise ValueError(f"{_OP}: parameters are in {dtype} and in {param.dtype}")
    if len(steps) != len(params):
        raise ValueError(f"{_OP}: got {len(steps)} steps for {len(params)} parameters")
    run = choose(_OP, backend, *params, *grads, *exp_avgs, *exp_avg_sqs)
    options = {"betas": betas, "eps": eps, "weight_decay": weight_decay, "adapt": adapt, "l1": l1}
    run(params, grads, exp_avgs, exp_avg_sqs, steps, lr=lr, **options, grad_factor=grad_factor)


@torch.no_grad()
def _run_compiled(
    compiled: Callable[..., None],
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
    grad_factor: float | Tensor,
) -> None:
    steps, lr = [_as_tensor(step) for step in steps], _as_tensor(lr)
    options = (*betas, eps, weight_decay, adapt, l1, _as_tensor(grad_factor))
    compiled(params, grads, exp_avgs, exp_avg_sqs, steps, lr, *options)


def _as_tensor(number: float | Tensor) -> Tensor:
    return number if isinstance(number, Tensor) else torch.tensor(number, dtype=torch.float64)


# The dispatcher's side.


def _with(kernel: Callable[..., None]) -> Callable[..., None]:
    def run(
        params: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        steps: list[Tensor],
        lr: Tensor,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        adapt: bool,
        l1: float,
        grad_factor: Tensor | None = None,
    ) -> None:
        options = {"lr": lr, "betas": (beta1, beta2), "eps": eps, "weight_decay": weight_decay, "adapt": adapt}
        factor = 1.0 if grad_factor is None else grad_factor
        kernel(params, grads, exp_avgs, exp_avg_sqs, steps, **options, l1=l1, grad_factor=factor)

    return run


_implementing = backends_with(_OP)
_compiled = define_in_place(
    _OP,
    {backend.name: _with(backend.function(_OP, _OP)) for backend in _implementing},
    changes=("params", "exp_avgs", "exp_avg_sqs"),
)

register_reference(_OP, reference.optimizer_step)
for _backend in _implementing:
    register(_OP, _backend, partial(_run_compiled, _compiled[_backend.name]))
