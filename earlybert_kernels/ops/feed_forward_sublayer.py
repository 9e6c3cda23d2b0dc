"""BERT's feed-forward sublayer on packed tokens: one autograd node."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .. import reference
from ..backends import cpu, cuda, triton
from ..reference.feed_forward import ACTIVATIONS
from ..units import indices
from .autocast import autocast
from .checks import check_active, check_gates, check_probability, check_same_device, check_shape
from .custom import Backend, Halves, define
from .dispatch import choose, register
from .flops import active_units
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
        active_neurons: the neurons to compute, as sorted int64 indices or as bool `(F,)`; None for all. The gradients
            of the others are 0. Indices are the faster: on a GPU only a mask may change within a captured graph,
            and only the device then knows how many neurons there are.
        neuron_gates: float32 (or float64) `(F,)`, one for every neuron, active or not.
        activation: `"gelu"` (exact, with erf), `"gelu_tanh"` or `"relu"`.
        dropout_p: of the block's output; applied whenever it is above 0.
        eps: of the layer norm.
        backend: one of `ops.backends("feed_forward_sublayer")`; default: the best that takes these tensors. `cuda`
            takes indices, and no mask.

    Returns:
        `(T, E)`.

    Raises:
        ValueError: shapes, devices or probabilities do not fit together, or the activation is unknown.
        TypeError: gates are in half precision, or `active_neurons` are neither int64 nor bool.
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
    check_active(_OP, "active_neurons", active_neurons, neurons)
    check_gates(_OP, "neuron_gates", neuron_gates, neurons)
    check_probability(_OP, "dropout_p", dropout_p)
    weights = {"w_in": w_in, "b_in": b_in, "w_out": w_out, "b_out": b_out}
    norm = {"norm_weight": norm_weight, "norm_bias": norm_bias}
    check_same_device(_OP, x=x, **weights, **norm, active_neurons=active_neurons, neuron_gates=neuron_gates)
    if activation not in ACTIVATIONS:
        raise ValueError(f"{_OP}: unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    run = choose(_OP, backend, x, *weights.values(), *norm.values(), active_neurons, neuron_gates, size=x.shape[0])
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
    compiled: Callable[..., tuple[Tensor, ...]],
    x: Tensor,
    *weights: Tensor,
    active_neurons: Tensor | None,
    neuron_gates: Tensor | None,
    activation: str,
    dropout_p: float,
    eps: float,
) -> Tensor:
    seed = draw_seed(dropout_p, x.device)
    *linears, norm_weight, norm_bias = weights
    weights = (*autocast(*linears), norm_weight, norm_bias)
    return compiled(x, *weights, active_neurons, neuron_gates, seed, activation, dropout_p, eps)[0]


# The dispatcher's side. Under autocast x and the norm are float32 and the four others in autocast's dtype, which is
# that of the products.


def _forward_shapes(x, w_in, b_in, w_out, b_out, norm_weight, norm_bias, active_neurons, *inputs):
    tokens = x.shape[0]
    active = w_in.shape[0] if active_neurons is None else active_neurons.shape[0]
    statistics = (x.new_empty(tokens, dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape), w_in.new_empty((tokens, active)), w_in.new_empty(x.shape), *statistics


def _backward_shapes(grad_out, preactivation, h, mean, rstd, x, w_in, w_out, norm_weight, active, gates, *inputs):
    neurons, hidden = w_in.shape
    products = (w_in.new_empty(size) for size in (w_in.shape, (neurons,), w_out.shape, (hidden,)))
    norm = (norm_weight.new_empty(hidden) for _ in range(2))
    grad_gates = x.new_empty(0 if gates is None else neurons, dtype=torch.float32)
    return x.new_empty(x.shape), *products, *norm, grad_gates


def _forward_flops(x, w_in, b_in, w_out, b_out, norm_weight, norm_bias, active, *inputs, out_val=None):
    return 4 * x.shape[0] * x.shape[1] * active_units(active, w_in.shape[0])


def _backward_flops(grad_out, preactivation, h, mean, rstd, x, w_in, w_out, norm_weight, active, *inputs, out_val=None):
    return 8 * x.shape[0] * x.shape[1] * active_units(active, w_in.shape[0])


def _save(ctx, inputs, output):
    x, w_in, _, w_out, _, norm_weight, _, active, gates, seed, ctx.activation, ctx.dropout_p, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], x, w_in, w_out, norm_weight, active, gates, seed)


def _gradients(ctx, backward, grad_out, *others):
    saved = ctx.saved_tensors
    gates = saved[9]
    arguments = (grad_out, *saved, ctx.activation, ctx.dropout_p)
    *grads, grad_gates = backward(*arguments)
    return *grads, None, None if gates is None else grad_gates, None, None, None, None


_UNITS = "Tensor? active_neurons, Tensor? neuron_gates, Tensor? seed, str activation, float dropout_p"
_shapes = Halves(_forward_shapes, _backward_shapes)
_compiled = define(
    _OP,
    (
        "(Tensor x, Tensor w_in, Tensor b_in, Tensor w_out, Tensor b_out, Tensor norm_weight, Tensor norm_bias,"
        f" {_UNITS}, float eps) -> (Tensor out, Tensor preactivation, Tensor h, Tensor mean, Tensor rstd)",
        "(Tensor grad_out, Tensor preactivation, Tensor h, Tensor mean, Tensor rstd, Tensor x, Tensor w_in,"
        f" Tensor w_out, Tensor norm_weight, {_UNITS}) -> (Tensor grad_x, Tensor grad_w_in, Tensor grad_b_in,"
        " Tensor grad_w_out, Tensor grad_b_out, Tensor grad_norm_weight, Tensor grad_norm_bias, Tensor grad_gates)",
    ),
    backends={
        "cpu": Backend(Halves(cpu.feed_forward_sublayer.forward, cpu.feed_forward_sublayer.backward), _shapes),
        "cuda": Backend(Halves(cuda.feed_forward_sublayer.forward, cuda.feed_forward_sublayer.backward), _shapes),
        "triton": Backend(Halves(*triton.kernels(_OP)), _shapes),
    },
    save=_save,
    gradients=_gradients,
    flops=Halves(_forward_flops, _backward_flops),
)


def _run_on_cpu(*tensors: Tensor, active_neurons: Tensor | None, **options) -> Tensor:
    return _run_compiled(_compiled["cpu"], *tensors, active_neurons=indices(active_neurons), **options)


register(_OP, "reference", reference.feed_forward_sublayer)
register(_OP, "cpu", _run_on_cpu, unavailable=cpu.unavailable, refuses=cpu.refuses_products)
register(
    _OP,
    "cuda",
    partial(_run_compiled, _compiled["cuda"]),
    **cuda.AVAILABILITY | {"refuses": cuda.feed_forward_sublayer.refuses},
)
register(_OP, "triton", partial(_run_compiled, _compiled["triton"]), **triton.AVAILABILITY)
