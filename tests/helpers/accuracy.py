"""How exact a kernel has to be: compared with float64, and with plain PyTorch in the kernel's dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


def results(
    function: Callable[..., Tensor], tensors: Iterable[Tensor], dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, ...]:
    """Output and gradients of `function` in `dtype` on `device`, for the same weights of the output; on the CPU."""
    leaves = [t.detach().to(device, dtype).requires_grad_() for t in tensors]
    out = function(*leaves)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(4)).to(out)
    grads = torch.autograd.grad((out * weights).sum(), leaves)
    return tuple(t.cpu() for t in (out, *grads))


def assert_as_exact_as_pytorch(
    ours: Sequence[Tensor], plain: Sequence[Tensor], truth: Sequence[Tensor], dtype: torch.dtype = torch.float32
) -> None:
    """At most twice plain PyTorch's error in `dtype`, plus 16 roundings (4 in half precision) of the largest value.

    In half precision 16 roundings in float32 of the largest of all results come on top: what should cancel out to 0 is
    a difference of such values.
    """
    half = dtype != torch.float32
    roundings = 4 if half else 16
    largest = max((exact.abs().max().item() for exact in truth if exact.numel()), default=0.0)
    for number, (a, b, exact) in enumerate(zip(ours, plain, truth, strict=True)):
        floor = roundings * torch.finfo(dtype).eps * exact.abs().max() if exact.numel() else 0
        floor += 16 * torch.finfo(torch.float32).eps * largest if half else 0
        error, allowed = (a - exact).abs().max(), 2 * (b - exact).abs().max() + floor
        assert error <= allowed, f"result {number}: error {error:.3g}, allowed {allowed:.3g}"


def assert_defined_by(
    compiled: Callable[..., Tensor],
    definition: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    device: str = "cpu",
) -> None:
    """`compiled` in float32 on `device` is as exact as the definition in float32, output and gradients."""
    ours = results(compiled, tensors, torch.float32, device)
    assert_as_exact_as_pytorch(
        ours, results(definition, tensors, torch.float32), results(definition, tensors, torch.float64)
    )
