"""BERT's feed-forward sublayer on packed tokens: one autograd node."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .. import reference
from ..backends import cpu
from ..reference.feed_forward import ACTIVATIONS
from .checks import check_gates, check_indices, check_probability, check_same_device, check_shape
from .custom import Kernels, define
from .dispatch import choose, register
from .dropout_add_layer_norm import dropout_add_layer_norm
from .feed_forward import feed_forward
from .seeds import draw_seed

_OP = "feed_forward_sublayer"


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
    backend: str | None = None,
) -> Tensor:
    """`dropout_add_layer_norm(feed_forward(x, ...), x, norm_weight, norm_bias)`, on the active neurons only.

    Args:
        x: `(T, E)`, any floating dtype.
        w_in, b_in, w_out, b_out: as in `feed_forward`.
        norm_weight, norm_bias: `(E,)`.
        active_neurons: int64, sorted indices of the neurons to compute; None for all. The gradients of the others
            are 0.
        neuron_gates: float32 (or float64) `(F,)`, one for every neuron, active or not.
        activation: `"gelu"` (exact, with erf), `"gelu_tanh"` or `"relu"`.
        dropout_p: of the block's output; applied whenever it is above 0.
        eps: of the layer norm.
        backend: one of `ops.backends("feed_forward_sublayer")`; default: the best that takes these tensors.

    Returns:
        `(T, E)`.

    Raises:
        ValueError: shapes, devices or probabilities do not fit together, or the activation is unknown.
        TypeError: gates are in half precision, or indices are not int64.
        IndexError: an index is outside the units (on the CPU).
        RuntimeError: the backend that was asked for cannot run this call.
    """
    if w_in.dim() != 2:
        raise ValueError(f"{_OP}: w_in has shape {tuple(w_in.shape)}, expected (neurons, hidden size)")
    neurons, hidden = w_in.shape
    check_shape(_OP, "x", x, (None, hidden), f"(tokens, {hidden}) to fit w_in")
    check_shape(_OP, "b_in", b_in, (neurons,), f"({neurons},) to fit w_in")
    check_shape(_OP, "w_out", w_out, (hidden, neurons), f"({hidden}, {neurons}) to fit w_in")
    for name, tensor in (("b_out", b_out), ("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        check_shape(_OP, name, tensor, (hidden,), f"({hidden},) to fit w_in")
    check_indices(_OP, "active_neurons", active_neurons)
    check_gates(_OP, "neuron_gates", neuron_gates, neurons)
    check_probability(_OP, "dropout_p", dropout_p)
    weights = {"w_in": w_in, "b_in": b_in, "w_out": w_out, "b_out": b_out}
    norm = {"norm_weight": norm_weight, "norm_bias": norm_bias}
    check_same_device(_OP, x=x, **weights, **norm, active_neurons=active_neurons, neuron_gates=neuron_gates)
    if activation not in ACTIVATIONS:
        raise ValueError(f"{_OP}: unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    if backend is None and x.is_cuda:
        run = _composed  # of ops, each of which chooses its own backend
    else:
        run = choose(_OP, backend, x, *weights.values(), *norm.values(), active_neurons, neuron_gates)
    return run(
        x,
        *weights.values(),
        *norm.values(),
        active_neurons=active_neurons,
        neuron_gates=neuron_gates,
        activation=activation,
        dropout_p=dropout_p,
        eps=eps,
    )


def _run_compiled(
    x: Tensor,
    *weights: Tensor,
    active_neurons: Tensor | None,
    neuron_gates: Tensor | None,
    activation: str,
    dropout_p: float,
    eps: float,
) -> Tensor:
    seed = draw_seed(dropout_p, x.device)
    inputs = (x, *weights, active_neurons, neuron_gates, seed, activation, dropout_p, eps)
    return torch.ops.earlybert.feed_forward_sublayer(*inputs)[0]


_composed = partial(
    reference.feed_forward_sublayer, feed_forward=feed_forward, dropout_add_layer_norm=dropout_add_layer_norm
)

register(_OP, "reference", reference.feed_forward_sublayer)
register(_OP, "cpu", _run_compiled, unavailable=cpu.unavailable, refuses=cpu.refuses_products)


# The dispatcher's side.


def _forward_shapes(x, w_in, b_in, w_out, b_out, norm_weight, norm_bias, active_neurons, *inputs):
    tokens = x.shape[0]
    active = w_in.shape[0] if active_neurons is None else active_neurons.shape[0]
    sizes = ((tokens, active), x.shape, (tokens,), (tokens,))
    return x.new_empty(x.shape), *(x.new_empty(size) for size in sizes)


def _backward_shapes(grad_out, preactivation, h, mean, rstd, x, w_in, w_out, norm_weight, active, gates, *inputs):
    neurons, hidden = w_in.shape
    sizes = (x.shape, w_in.shape, (neurons,), w_out.shape, (hidden,), (hidden,), (hidden,))
    return *(x.new_empty(size) for size in sizes), x.new_empty(0 if gates is None else (neurons,))


def _save(ctx, inputs, output):
    x, w_in, _, w_out, _, norm_weight, _, active, gates, seed, ctx.activation, ctx.dropout_p, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], x, w_in, w_out, norm_weight, active, gates, seed)


def _gradients(ctx, grad_out, *others):
    saved = ctx.saved_tensors
    gates = saved[9]
    arguments = (grad_out, *saved, ctx.activation, ctx.dropout_p)
    *grads, grad_gates = torch.ops.earlybert.feed_forward_sublayer_backward(*arguments)
    return *grads, None, None if gates is None else grad_gates, None, None, None, None


_UNITS = "Tensor? active_neurons, Tensor? neuron_gates, Tensor? seed, str activation, float dropout_p"
define(
    _OP,
    (
        "(Tensor x, Tensor w_in, Tensor b_in, Tensor w_out, Tensor b_out, Tensor norm_weight, Tensor norm_bias,"
        f" {_UNITS}, float eps) -> (Tensor out, Tensor preactivation, Tensor h, Tensor mean, Tensor rstd)",
        "(Tensor grad_out, Tensor preactivation, Tensor h, Tensor mean, Tensor rstd, Tensor x, Tensor w_in,"
        f" Tensor w_out, Tensor norm_weight, {_UNITS}) -> (Tensor grad_x, Tensor grad_w_in, Tensor grad_b_in,"
        " Tensor grad_w_out, Tensor grad_b_out, Tensor grad_norm_weight, Tensor grad_norm_bias, Tensor grad_gates)",
    ),
    kernels={"cpu": Kernels(cpu.feed_forward_sublayer.forward, cpu.feed_forward_sublayer.backward)},
    shapes=Kernels(_forward_shapes, _backward_shapes),
    save=_save,
    gradients=_gradients,
)
