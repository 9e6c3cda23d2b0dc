"""What stands between the two products of a feed-forward block, by the CUDA extension: `gates * activation(y)`."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ACTIVATIONS, address, cuda


def forward(y: Tensor, gates: Tensor | None, activation: str, *, in_place: bool = False) -> Tensor:
    """`gates * activation(y)`, computed in float32 and rounded once.

    Args:
        y: `(T, F)`, contiguous, float32, float16 or bfloat16.
        gates: float32 `(F,)`; None for 1.
        activation: a name of `reference.feed_forward.ACTIVATIONS`.
        in_place: whether to write the result over y.

    Returns:
        `(T, F)` in y's dtype.
    """
    gates = None if gates is None else gates.contiguous()
    h = y if in_place else torch.empty_like(y)
    cuda.extension.activation_forward(
        *cuda.launch(y),
        cuda.code(y),
        ACTIVATIONS.index(activation),
        *y.shape,
        y.data_ptr(),
        address(gates),
        h.data_ptr(),
    )
    return h


def backward(grad_h: Tensor, y: Tensor, gates: Tensor | None, activation: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `forward`'s y and gates, and what the products around it need, in one pass.

    Args:
        grad_h: `(T, F)`, contiguous, in y's dtype; the gradient of y is written over it.
        y, gates, activation: as in `forward`.

    Returns:
        The gradient of y; `forward`'s result once more; the sums of y's gradient over tokens `(F,)`, in y's dtype,
        which are the gradient of the bias in y; and the gates' gradient, float32 `(F,)`, or `(0,)` without gates. The
        same bits in every run.
    """
    gates = None if gates is None else gates.contiguous()
    h = torch.empty_like(y)
    tokens, neurons = y.shape
    grad_bias = torch.empty(neurons, dtype=y.dtype, device=y.device)
    grad_gates = torch.empty(0 if gates is None else neurons, dtype=torch.float32, device=y.device)
    rows = cuda.extension.activation_partials(tokens, neurons)
    partials = torch.empty((1 if gates is None else 2, rows, neurons), dtype=torch.float32, device=y.device)
    cuda.extension.activation_backward(
        *cuda.launch(y),
        cuda.code(y),
        ACTIVATIONS.index(activation),
        tokens,
        neurons,
        grad_h.data_ptr(),
        y.data_ptr(),
        address(gates),
        h.data_ptr(),
        grad_bias.data_ptr(),
        address(None if gates is None else grad_gates),
        partials.data_ptr(),
    )
    return grad_h, h, grad_bias, grad_gates
