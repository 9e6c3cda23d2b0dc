"""The feed-forward sublayer, composed of other ops."""

from __future__ import annotations

from torch import Tensor

from ..units import fold_gates, indices
from .dropout_add_layer_norm import dropout_add_layer_norm
from .feed_forward import feed_forward


def feed_forward_sublayer(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    active_neurons: Tensor | None = None,
    neuron_gates: Tensor | None = None,
    activation: str = "gelu",
    dropout_p: float = 0.0,
    eps: float = 1e-12,
    keep: Tensor | None = None,
) -> Tensor:
    """The definition of `ops.feed_forward_sublayer`, which documents the arguments.

    Args:
        keep: bool `(T, E)`: the elements of the block's output that dropout keeps. Default: drawn by `F.dropout`.
    """
    if active_neurons is not None:
        active_neurons = indices(active_neurons)
        w_in, b_in = w_in.index_select(0, active_neurons), b_in.index_select(0, active_neurons)
        w_out = w_out.index_select(1, active_neurons)
        neuron_gates = None if neuron_gates is None else neuron_gates.index_select(0, active_neurons)
    if neuron_gates is not None:
        w_out = fold_gates(w_out, neuron_gates)
    h = feed_forward(x, w_in, b_in, w_out, b_out, activation=activation)
    return dropout_add_layer_norm(h, x, norm_weight, norm_bias, dropout_p=dropout_p, eps=eps, keep=keep)
