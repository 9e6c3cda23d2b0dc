"""The feed-forward sublayer: the block, then dropout, the residual and the layer norm."""

from __future__ import annotations

from torch import Tensor

from ..arguments import (
    FeedForwardSublayerGrads,
    FeedForwardSublayerInputs,
    FeedForwardSublayerResults,
    FeedForwardSublayerSaved,
)
from . import Parts


def forward(parts: Parts, own: FeedForwardSublayerInputs) -> FeedForwardSublayerResults:
    """The output, and what backward needs.

    x may be wider than the weights, whose dtype is that of the products.
    """
    low = own.x.to(own.w_in.dtype) if own.x_low is None else own.x_low
    h, preactivation = parts.feed_forward.forward(
        low, own.w_in, own.b_in, own.w_out, own.b_out, own.active_neurons, own.neuron_gates, own.activation, own.saves
    )
    out, mean, rstd, out_low = parts.dropout_add_layer_norm.forward(
        h, own.x, own.norm_weight, own.norm_bias, own.seed, own.dropout_p, own.eps, own.saves, cast_out=own.return_low
    )
    out_low = h.new_empty(0) if out_low is None else out_low
    return FeedForwardSublayerResults(out, preactivation, h, mean, rstd, out_low)


def backward(parts: Parts, grad_out: Tensor, own: FeedForwardSublayerSaved) -> FeedForwardSublayerGrads:
    """The gradients of the inputs."""
    grad_h, grad_x, *grad_norm, grad_b_out, low = parts.dropout_add_layer_norm.backward(
        grad_out, own.h, own.x, own.norm_weight, own.mean, own.rstd, own.seed, own.dropout_p, cast_residual=True
    )
    if grad_h is None:  # it equals the gradient of the residual, which is about to be added to
        grad_h, grad_x = grad_x, grad_x.clone()
    *grads, grad_gates = parts.feed_forward.backward(
        grad_h, own.preactivation, low, own.w_in, own.w_out, own.active_neurons, own.neuron_gates, own.activation,
        grad_x=grad_x, grad_b_out=grad_b_out,
    )  # fmt: skip
    return FeedForwardSublayerGrads._make((*grads, *grad_norm, grad_gates))
