"""How exact a kernel has to be: compared with float64, and with plain PyTorch in the kernel's dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


def results(function: Callable[..., Tensor], tensors: Iterable[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Output and gradients of `function` in `dtype`, for the same weights of the output."""
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    out = function(*leaves)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    return out, *torch.autograd.grad((out * weights).sum(), leaves)


def assert_as_exact_as_pytorch(
    ours: Sequence[Tensor], plain: Sequence[Tensor], truth: Sequence[Tensor], dtype: torch.dtype = torch.float32
) -> None:
    """At most twice plain PyTorch's error, plus roundings of the largest value: 16 in float32, else one."""
    for number, (a, b, exact) in enumerate(zip(ours, plain, truth, strict=True)):
        floor = (16 if dtype == torch.float32 else 1) * torch.finfo(dtype).eps * exact.abs().max()
        error, allowed = (a - exact).abs().max(), 2 * (b - exact).abs().max() + floor
        assert error <= allowed, f"result {number}: error {error:.3g}, allowed {allowed:.3g}"


def assert_defined_by(
    compiled: Callable[..., Tensor], definition: Callable[..., Tensor], tensors: Sequence[Tensor]
) -> None:
    """`compiled` in float32 is as exact as the definition in float32, output and gradients."""
    ours = results(compiled, tensors, torch.float32)
    assert_as_exact_as_pytorch(
        ours, results(definition, tensors, torch.float32), results(definition, tensors, torch.float64)
    )
