"""What the tests of the optimizers' kernels on GPUs step, and how exact they have to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from earlybert_kernels import reference
from tests.helpers.accuracy import assert_as_exact_as_pytorch

OPTIONS = {"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.1}
STEPS = 2


def aligned(tensor: Tensor) -> Tensor:
    return tensor.clone()


def misaligned(tensor: Tensor) -> Tensor:
    """The same numbers behind an address that no wide load can take."""
    return tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)


def with_gaps(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor], -1).select(-1, 0)


def problem(shapes: Sequence[tuple[int, ...]]) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Parameters, which keep their sign, and the gradients of some steps; some of each are 0."""
    params = [torch.randn(shape) for shape in shapes]
    params = [param + param.sign() for param in params] + [torch.zeros(70), torch.randn(70), torch.zeros(5)]
    grads = [[torch.randn_like(param) for param in params] for _ in range(STEPS)]
    for of_step in grads:
        of_step[-2:] = torch.zeros(70), torch.zeros(5)
    return params, grads


def stepped(
    step: Callable[..., None],
    params: list[Tensor],
    grads_of_steps: list[list[Tensor]],
    numbers: Callable[[float], float | Tensor] = float,
    view: Callable[[Tensor], Tensor] = aligned,
    grad_factor: float = 1.0,
    **options,
) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters and their moments after the steps, which are given `view` of every tensor.

    `numbers` makes step counts, learning rate and factor.
    """
    moments = [torch.zeros_like(param, dtype=torch.promote_types(param.dtype, torch.float32)) for param in params]
    params, exp_avgs, exp_avg_sqs = ([view(t) for t in tensors] for tensors in (params, moments, moments))
    for count, grads in enumerate(grads_of_steps, start=1):
        grads = [view(grad) for grad in grads]
        counts = [numbers(float(count + index % 4)) for index in range(len(params))]
        scalars = {"lr": numbers(1e-2), "grad_factor": numbers(grad_factor)}
        step(params, grads, exp_avgs, exp_avg_sqs, counts, **scalars, **OPTIONS, **options)
    return [t.cpu() for t in params], [t.cpu() for t in exp_avgs + exp_avg_sqs]


def assert_exact(
    step: Callable[..., None],
    params: list[Tensor],
    grads: list[list[Tensor]],
    device: str,
    numbers: Callable[[float], float | Tensor] = float,
    view: Callable[[Tensor], Tensor] = aligned,
    **options,
) -> None:
    """The kernel's results on `device` are as exact as those of plain PyTorch in the same dtypes."""
    plain = stepped(reference.optimizer_step, params, grads, **options)
    wide = [param.double() for param in params], [[grad.double() for grad in of_step] for of_step in grads]
    truth = stepped(reference.optimizer_step, *wide, **options)
    here = [param.to(device) for param in params], [[grad.to(device) for grad in of_step] for of_step in grads]
    results = stepped(step, *here, numbers=numbers, view=view, **options)
    dtypes = (params[0].dtype, torch.float32)
    for mine, theirs, exact, dtype in zip(results, plain, truth, dtypes, strict=True):
        kept = [each for each in zip(mine, theirs, exact, strict=True) if each[2].numel()]
        for each in kept:
            assert_as_exact_as_pytorch(*([tensor] for tensor in each), dtype=dtype)
