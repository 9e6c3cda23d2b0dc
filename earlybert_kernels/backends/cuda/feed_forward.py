"""The feed-forward block: the vendor's products on the computed neurons, and this backend's activation between them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import vendor
from . import activation as activation_kernels
from .units import put_each, take_each


def forward(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    active: Tensor | None,
    gates: Tensor | None,
    activation: str,
    saves: bool = True,
) -> tuple[Tensor, Any]:
    """The output `(T, E)`, and the neurons' values before the activation `(T, computed neurons)`, None unless `saves`.

    `active` are the neurons to compute, as int64 indices; the rest is as in `ops.feed_forward`.
    """
    w_in, b_in, w_out, gates = take_each((w_in, 0), (b_in, 0), (w_out, 1), (gates, 0), units=active)
    preactivation, _ = vendor.linear(x, w_in, b_in)
    h = activation_kernels.forward(preactivation, gates, activation, in_place=not saves)
    return vendor.linear(h, w_out, b_out)[0], preactivation if saves else None


def backward(
    grad_out: Tensor,
    preactivation: Tensor,
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    active: Tensor | None,
    gates: Tensor | None,
    activation: str,
    *,
    grad_x: Tensor | None = None,
    grad_b_out: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The gradients of x, w_in, b_in, w_out, b_out and gates (empty without).

    Args:
        grad_x: `(T, E)`, contiguous, to which the gradient of x is added; None for a new one.
        grad_b_out: the column sums of `grad_out`, where they are known.
    """
    neurons = w_in.shape[0]
    w_in, w_out, gates = take_each((w_in, 0), (w_out, 1), (gates, 0), units=active)
    grad_y, h, grad_b_in, grad_gates = activation_kernels.backward(
        vendor.linear_grad_input(grad_out, w_out), preactivation, gates, activation
    )
    grad_w_out = vendor.linear_grad_weight(grad_out, h)
    grad_w_in = vendor.linear_grad_weight(grad_y, x)
    grad_x = vendor.linear_grad_input(grad_y, w_in, add_to=grad_x)
    grad_b_out = grad_out.sum(0) if grad_b_out is None else grad_b_out
    grads = [(grad_w_in, 0), (grad_b_in, 0), (grad_w_out, 1), *([] if gates is None else [(grad_gates, 0)])]
    grad_w_in, grad_b_in, grad_w_out, *of_gates = put_each(*grads, units=active, total=neurons)
    return grad_x, grad_w_in, grad_b_in, grad_w_out, grad_b_out, *(of_gates or [grad_gates])
