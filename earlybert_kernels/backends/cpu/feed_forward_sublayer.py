"""The feed-forward sublayer: the block, then dropout, the residual and the layer norm."""

from __future__ import annotations

from torch import Tensor

from ..arguments import (
    FeedForwardSublayerGrads,
    FeedForwardSublayerInputs,
    FeedForwardSublayerResults,
    FeedForwardSublayerSaved,
)
from . import dropout_add_layer_norm, empty, feed_forward


def forward(own: FeedForwardSublayerInputs) -> FeedForwardSublayerResults:
    """The output, and what backward needs."""
    h, preactivation = feed_forward.forward(
        own.x, own.w_in, own.b_in, own.w_out, own.b_out, own.active_neurons, own.neuron_gates, own.activation,
        own.saves, bfloat16=own.bfloat16,
    )  # fmt: skip
    out, mean, rstd = dropout_add_layer_norm.forward(
        h, own.x, own.norm_weight, own.norm_bias, own.seed, own.dropout_p, own.eps, own.saves
    )
    return FeedForwardSublayerResults(out, preactivation, h, mean, rstd, low=empty(0))


def backward(grad_out: Tensor, own: FeedForwardSublayerSaved) -> FeedForwardSublayerGrads:
    """The gradients of the inputs."""
    grad_h, grad_x, *grad_norm = dropout_add_layer_norm.backward(
        grad_out, own.h, own.x, own.norm_weight, own.mean, own.rstd, own.seed, own.dropout_p
    )
    if grad_h is None:  # it equals the gradient of the residual, which is about to be added to
        grad_h, grad_x = grad_x, grad_x.clone()
    *grads, grad_gates = feed_forward.backward(
        grad_h, own.preactivation, own.x, own.w_in, own.w_out, own.active_neurons, own.neuron_gates, own.activation,
        grad_x=grad_x, bfloat16=own.bfloat16,
    )  # fmt: skip
    return FeedForwardSublayerGrads._make((*grads, *grad_norm, grad_gates))
