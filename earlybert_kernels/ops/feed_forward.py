"""Masked feed-forward block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .. import reference
from ..backends.arguments import FeedForwardGrads, FeedForwardInputs, FeedForwardResults, FeedForwardSaved
from ..backends.backend import Backend
from ..reference.feed_forward import ACTIVATIONS
from .autocast import autocast, widened
from .checks import check_gates, check_mask, check_same_device, check_shape
from .custom import Halves
from .declare import Arguments, declare
from .dispatch import choose
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
        BackendUnavailableError: the backend that was asked for cannot run this call.
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
    backend: Backend,
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
    weights = (w_in, b_in, w_out, b_out)
    # What rounds factors to bfloat16 does so where x is bfloat16, which the result then is, too.
    taken = (*autocast(x), *widened(backend, *weights)) if backend.rounds_factors else autocast(x, *weights)
    return compiled(*taken, neuron_mask, neuron_gates, activation)[0]


def _shapes(backend: Backend) -> Halves:
    def forward(inputs: FeedForwardInputs) -> FeedForwardResults:
        x = inputs.x
        neurons = inputs.w_in.shape[0] if inputs.active is None else inputs.active.shape[0]
        return FeedForwardResults(x.new_empty(x.shape), x.new_empty((x.shape[0], neurons)))

    def backward(grad_out: Tensor, saved: FeedForwardSaved) -> FeedForwardGrads:
        x, w_in = saved.x, saved.w_in
        neurons, hidden = w_in.shape
        linears = (w_in.new_empty(size) for size in (w_in.shape, (neurons,), saved.w_out.shape, (hidden,)))
        gates = x.new_empty(0 if saved.gates is None else neurons, dtype=torch.float32)
        return FeedForwardGrads._make((x.new_empty(x.shape), *linears, gates))

    return Halves(forward, backward)


def _flops(products: int, own: FeedForwardInputs | FeedForwardSaved) -> int:
    """Of so many products of the size of either linear layer's."""
    return 2 * products * own.x.shape[0] * own.x.shape[1] * active_units(own.active, own.w_in.shape[0])


declare(
    _OP,
    Arguments(FeedForwardInputs, FeedForwardResults, FeedForwardSaved, FeedForwardGrads),
    reference=reference.feed_forward,
    run=_run_compiled,
    shapes=_shapes,
    flops=Halves(partial(_flops, 2), partial(_flops, 4)),
    active="neuron_mask",
)
