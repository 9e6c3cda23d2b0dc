"""The feed-forward sublayer: the block, then dropout, the residual and the layer norm."""

from __future__ import annotations

from torch import Tensor

from . import Parts


def forward(
    parts: Parts,
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    active_neurons: Tensor | None,
    neuron_gates: Tensor | None,
    seed: Tensor | None,
    activation: str,
    dropout_p: float,
    eps: float,
) -> tuple[Tensor, ...]:
    """The output, and for backward: the preactivations, the block's output, the norm's mean and rstd.

    x may be wider than the weights, whose dtype is that of the products.
    """
    h, preactivation = parts.feed_forward.forward(
        x.to(w_in.dtype), w_in, b_in, w_out, b_out, active_neurons, neuron_gates, activation
    )
    out, mean, rstd = parts.dropout_add_layer_norm.forward(h, x, norm_weight, norm_bias, seed, dropout_p, eps)
    return out, preactivation, h, mean, rstd


def backward(
    parts: Parts,
    grad_out: Tensor,
    preactivation: Tensor,
    h: Tensor,
    mean: Tensor,
    rstd: Tensor,
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    norm_weight: Tensor,
    active_neurons: Tensor | None,
    neuron_gates: Tensor | None,
    seed: Tensor | None,
    activation: str,
    dropout_p: float,
) -> tuple[Tensor, ...]:
    """The gradients of x, w_in, b_in, w_out, b_out, norm_weight, norm_bias and neuron_gates."""
    grad_h, grad_x, *grad_norm, grad_b_out = parts.dropout_add_layer_norm.backward(
        grad_out, h, x, norm_weight, mean, rstd, seed, dropout_p
    )
    if grad_h is None:  # it equals the gradient of the residual, which is about to be added to
        grad_h, grad_x = grad_x, grad_x.clone()
    *grads, grad_gates = parts.feed_forward.backward(
        grad_h, preactivation, x.to(w_in.dtype), w_in, w_out, active_neurons, neuron_gates, activation, grad_x=grad_x,
        grad_b_out=grad_b_out,
    )  # fmt: skip
    return *grads, *grad_norm, grad_gates
