"""The feed-forward block: two products on the computed neurons, the activation in the epilogue of the first."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .fold import fold, unfold
from .products import linear, linear_grad_input, linear_grad_preactivation, linear_grad_weight
from .units import computed_units, put, take, used


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
    """The output `(T, E)`, and the neurons' values before the activation `(T, room for neurons)`, None
    unless `saves`.

    `active` are the neurons to compute, as int64 indices or as a bool mask; the rest is as in `ops.feed_forward`.
    """
    units = computed_units(active)
    h, preactivation = linear(
        x, take(w_in, units), take(b_in, units), activation=activation, outputs=used(units), saves=saves
    )
    out, _ = linear(h, fold(w_out, units, gates), b_out, inputs=used(units))
    return out, preactivation


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
    units, neurons = computed_units(active), w_in.shape[0]
    grad_h, h, grad_b_in = linear_grad_preactivation(
        grad_out, fold(w_out, units, gates), preactivation, activation, inputs=used(units)
    )
    grad_folded = linear_grad_weight(grad_out, h, inputs=used(units))
    grad_w_out, grad_gates = unfold(grad_folded, w_out, units, gates)
    grad_w_in = put(linear_grad_weight(grad_h, x, outputs=used(units)), units, neurons)
    grad_b_in = put(grad_b_in.to(w_in.dtype), units, neurons)
    grad_x = linear_grad_input(grad_h, take(w_in, units), outputs=used(units), add_to=grad_x)
    grad_b_out = grad_out.sum(0) if grad_b_out is None else grad_b_out
    return grad_x, grad_w_in, grad_b_in, grad_w_out, grad_b_out, grad_gates
