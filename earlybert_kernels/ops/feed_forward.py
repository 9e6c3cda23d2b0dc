"""Masked feed-forward block."""

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
from .checks import check_gates, check_mask, check_same_device, check_shape
from .custom import Backend, Halves, define
from .dispatch import choose, register
from .flops import active_units

_OP = "feed_forward"


def feed_forward(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    *,
    neuron_mask: Tensor | None = None,
    neuron_gates: Tensor | None = None,
    activation: str = "gelu",
    backend: str | None = None,
) -> Tensor:
    """`(neuron_gates * activation(x w_in^T + b_in)) w_out^T + b_out`, on the unmasked neurons only.

    The gate is EarlyBERT's coefficient of a neuron (arXiv 2101.00063, section 3.1).

    Args:
        x: `(T, E)`, any floating dtype.
        w_in: `(F, E)`; b_in: `(F,)`; w_out: `(E, F)`; b_out: `(E,)` (the layout of `torch.nn.Linear`).
        neuron_mask: bool `(F,)`; a False neuron is not computed: its contribution and its gradients are 0.
        neuron_gates: float32 (or float64) `(F,)`, scales each neuron's activation and gets a gradient.
        activation: `"gelu"` (exact, with erf), `"gelu_tanh"` or `"relu"`.
        backend: one of `ops.backends("feed_forward")`; default: the best that takes these tensors. `cuda` takes no
            mask: `feed_forward_sublayer` has indices for it.

    Returns:
        `(T, E)`.

    Raises:
        ValueError: shapes or devices do not fit together, or the activation is unknown.
        TypeError: the mask is not bool, or gates are in half precision.
        RuntimeError: the backend that was asked for cannot run this call.
    """
    if w_in.dim() != 2:
        raise ValueError(f"{_OP}: w_in has shape {tuple(w_in.shape)}, expected (neurons, hidden size)")
    neurons, hidden = w_in.shape
    check_shape(_OP, "x", x, (None, hidden), f"(tokens, {hidden}) to fit w_in")
    check_shape(_OP, "b_in", b_in, (neurons,), f"({neurons},) to fit w_in")
    check_shape(_OP, "w_out", w_out, (hidden, neurons), f"({hidden}, {neurons}) to fit w_in")
    check_shape(_OP, "b_out", b_out, (hidden,), f"({hidden},) to fit w_in")
    check_mask(_OP, "neuron_mask", neuron_mask, neurons)
    check_gates(_OP, "neuron_gates", neuron_gates, neurons)
    weights = {"w_in": w_in, "b_in": b_in, "w_out": w_out, "b_out": b_out}
    check_same_device(_OP, x=x, **weights, neuron_mask=neuron_mask, neuron_gates=neuron_gates)
    if activation not in ACTIVATIONS:
        raise ValueError(f"{_OP}: unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    run = choose(_OP, backend, x, w_in, b_in, w_out, b_out, neuron_mask, neuron_gates, size=x.shape[0])
    return run(
        x,
        w_in,
        b_in,
        w_out,
        b_out,
        neuron_mask=neuron_mask,
        neuron_gates=neuron_gates,
        activation=activation,
    )


def _run_compiled(
    compiled: Callable[..., tuple[Tensor, Tensor]],
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    *,
    neuron_mask: Tensor | None,
    neuron_gates: Tensor | None,
    activation: str,
) -> Tensor:
    return compiled(*autocast(x, w_in, b_in, w_out, b_out), neuron_mask, neuron_gates, activation)[0]


# The dispatcher's side; `active` are the neurons to compute, as indices or as a mask.


def _forward_shapes(x, w_in, b_in, w_out, b_out, active, gates, activation):
    neurons = w_in.shape[0] if active is None else active.shape[0]
    return x.new_empty(x.shape), x.new_empty((x.shape[0], neurons))


def _backward_shapes(grad_out, preactivation, x, w_in, w_out, active, gates, activation):
    neurons, hidden = w_in.shape
    sizes = (x.shape, w_in.shape, (neurons,), w_out.shape, (hidden,))
    return *(x.new_empty(size) for size in sizes), x.new_empty(0 if gates is None else neurons, dtype=torch.float32)


def _forward_flops(x, w_in, b_in, w_out, b_out, active, *inputs, out_val=None):
    return 4 * x.shape[0] * x.shape[1] * active_units(active, w_in.shape[0])


def _backward_flops(grad_out, preactivation, x, w_in, w_out, active, *inputs, out_val=None):
    return 8 * x.shape[0] * x.shape[1] * active_units(active, w_in.shape[0])


def _save(ctx, inputs, output):
    x, w_in, _, w_out, _, active, gates, ctx.activation = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], x, w_in, w_out, active, gates)


def _gradients(ctx, backward, grad_out, grad_preactivation):
    saved = ctx.saved_tensors
    gates = saved[5]
    *grads, grad_gates = backward(grad_out, *saved, ctx.activation)
    return *grads, None, None if gates is None else grad_gates, None


_shapes = Halves(_forward_shapes, _backward_shapes)
_compiled = define(
    _OP,
    (
        "(Tensor x, Tensor w_in, Tensor b_in, Tensor w_out, Tensor b_out, Tensor? active, Tensor? gates,"
        " str activation) -> (Tensor out, Tensor preactivation)",
        "(Tensor grad_out, Tensor preactivation, Tensor x, Tensor w_in, Tensor w_out, Tensor? active, Tensor? gates,"
        " str activation) -> (Tensor grad_x, Tensor grad_w_in, Tensor grad_b_in, Tensor grad_w_out,"
        " Tensor grad_b_out, Tensor grad_gates)",
    ),
    backends={
        "cpu": Backend(Halves(cpu.feed_forward.forward, cpu.feed_forward.backward), _shapes),
        "cuda": Backend(Halves(cuda.feed_forward.forward, cuda.feed_forward.backward), _shapes),
        "triton": Backend(Halves(*triton.kernels(_OP)), _shapes),
    },
    save=_save,
    gradients=_gradients,
    flops=Halves(_forward_flops, _backward_flops),
)


def _run_on_cpu(*tensors: Tensor, neuron_mask: Tensor | None, **options) -> Tensor:
    return _run_compiled(_compiled["cpu"], *tensors, neuron_mask=indices(neuron_mask), **options)


register(_OP, "reference", reference.feed_forward)
register(_OP, "cpu", _run_on_cpu, unavailable=cpu.unavailable, refuses=cpu.refuses_products)
register(_OP, "cuda", partial(_run_compiled, _compiled["cuda"]), **cuda.AVAILABILITY | {"refuses": cuda.units.refuses})
register(_OP, "triton", partial(_run_compiled, _compiled["triton"]), **triton.AVAILABILITY)
