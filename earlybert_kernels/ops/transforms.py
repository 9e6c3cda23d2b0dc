"""Which ways of differentiating the kernels do not know, and would otherwise follow without a word."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

_INSTEAD = (
    "call earlybert_kernels.restore(model) first, or run the op in plain PyTorch, with "
    "earlybert_kernels.use_backend('reference')"
)


def refuse_transforms(op: str, *tensors: Tensor | None) -> None:
    """Raises NotImplementedError if a kernel that is called now would lose tangents, or torch.func's gradients."""
    if torch.compiler.is_compiling():
        return
    if forward_ad._current_level >= 0 and any(map(_has_tangent, tensors)):
        raise NotImplementedError(
            f"{op}: forward-mode differentiation (torch.func.jvp, jacfwd, linearize, torch.autograd.forward_ad) is "
            f"not supported: {_INSTEAD}"
        )
    # A transform that does not differentiate, as vmap alone, is none of ours.
    if (
        torch._C._are_functorch_transforms_active()
        and torch.is_grad_enabled()
        and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    ):
        raise NotImplementedError(f"{op}: torch.func transforms (grad, vjp, jacrev) are not supported: {_INSTEAD}")


def only_values_count() -> bool:
    """Whether no compiler, mode or transform looks at which ops are called, so that they need no dispatcher."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
    )


def _has_tangent(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.is_floating_point() and forward_ad.unpack_dual(tensor).tangent is not None
