"""BERT's feed-forward sublayer on packed tokens: one autograd node."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..backends.arguments import (
    FeedForwardSublayerGrads,
    FeedForwardSublayerInputs,
    FeedForwardSublayerResults,
    FeedForwardSublayerSaved,
)
from ..backends.backend import Backend
from ..reference.feed_forward import ACTIVATIONS
from .autocast import factors, widened
from .checks import check_active, check_gates, check_probability, check_same_device, check_shape
from .custom import Halves
from .declare import Arguments, by_name, declare
from .dispatch import choose
from .flops import active_units
from .low_copy import check_low, empty_low, returned, usable, without_low
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
    x_low: Tensor | None = None,
    return_low: bool = False,
    backend: str | None = None,
) -> Any:
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
        x_low: x in the dtype of the products, where that is another, as a sublayer before has returned it: saves a pass
            over x. Gradients go to x. Ignored where the products have yet another dtype.
        return_low: return such a copy of the result as well.
        backend: one of `ops.backends("feed_forward_sublayer")`; default: the best that takes these tensors. `cuda`
            takes indices, and no mask.

    Returns:
        `(T, E)`; with `return_low` that, and its copy or None: there is none where it would have the same dtype, and in
        plain PyTorch.

    Raises:
        ValueError: shapes, devices or probabilities do not fit together, or the activation is unknown.
        TypeError: gates are in half precision, or `active_neurons` are neither int64 nor bool.
        IndexError: an index is outside the units (on the CPU).
        BackendUnavailableError: the backend that was asked for cannot run this call.
    """
    if w_in.dim() != 2:
        raise ValueError(f"{_OP}: w_in has shape {tuple(w_in.shape)}, expected (neurons, hidden size)")
    neurons, hidden = w_in.shape
    check_shape(_OP, "x", x, (None, hidden), f"(tokens, {hidden}) to fit w_in")
    check_low(_OP, x_low, x)
    check_shape(_OP, "b_in", b_in, (neurons,), f"({neurons},) to fit w_in")
    check_shape(_OP, "w_out", w_out, (hidden, neurons), f"({hidden}, {neurons}) to fit w_in")
    for name, tensor in (("b_out", b_out), ("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        check_shape(_OP, name, tensor, (hidden,), f"({hidden},) to fit w_in")
    check_active(_OP, "active_neurons", active_neurons, neurons)
    check_gates(_OP, "neuron_gates", neuron_gates, neurons)
    check_probability(_OP, "dropout_p", dropout_p)
    weights = {"w_in": w_in, "b_in": b_in, "w_out": w_out, "b_out": b_out}
    norm = {"norm_weight": norm_weight, "norm_bias": norm_bias}
    units = {"active_neurons": active_neurons, "neuron_gates": neuron_gates}
    check_same_device(_OP, x=x, x_low=x_low, **weights, **norm, **units)
    if activation not in ACTIVATIONS:
        raise ValueError(f"{_OP}: unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    run = choose(_OP, backend, x, *weights.values(), *norm.values(), *units.values(), size=x.shape[0])
    return run(
        x,
        *weights.values(),
        *norm.values(),
        **units,
        activation=activation,
        dropout_p=dropout_p,
        eps=eps,
        x_low=x_low,
        return_low=return_low,
    )


def _run_compiled(
    compiled: Callable[..., tuple[Tensor, ...]],
    backend: Backend,
    x: Tensor,
    *weights: Tensor,
    active_neurons: Tensor | None,
    neuron_gates: Tensor | None,
    activation: str,
    dropout_p: float,
    eps: float,
    x_low: Tensor | None,
    return_low: bool,
) -> Any:
    seed = draw_seed(dropout_p, x.device)
    *linears, norm_weight, norm_bias = weights
    taken, bfloat16 = factors(backend, *linears)
    dtype, (x, *norm) = x.dtype, widened(backend, x, norm_weight, norm_bias)
    weights = (*taken, *norm)
    low = (usable(x_low, x, weights[0]), return_low, bfloat16)
    results = compiled(x, *weights, active_neurons, neuron_gates, seed, activation, dropout_p, eps, *low)
    return returned(results, weights[0], return_low, dtype)


def _shapes(backend: Backend) -> Halves:
    return Halves(_forward_shapes, _backward_shapes)


def _forward_shapes(inputs: FeedForwardSublayerInputs) -> FeedForwardSublayerResults:
    x, w_in, tokens = inputs.x, inputs.w_in, inputs.x.shape[0]
    active = w_in.shape[0] if inputs.active_neurons is None else inputs.active_neurons.shape[0]
    inner = torch.bfloat16 if inputs.bfloat16 else w_in.dtype
    out, h = x.new_empty(x.shape), w_in.new_empty(x.shape)
    preactivation = w_in.new_empty((tokens, active), dtype=inner)
    mean, rstd = (x.new_empty(tokens, dtype=torch.float32) for _ in range(2))
    low = empty_low(out, w_in, inputs.return_low)
    return FeedForwardSublayerResults(out, preactivation, h, mean, rstd, low)


def _backward_shapes(grad_out: Tensor, saved: FeedForwardSublayerSaved) -> FeedForwardSublayerGrads:
    x, w_in = saved.x, saved.w_in
    neurons, hidden = w_in.shape
    linears = (w_in.new_empty(size) for size in (w_in.shape, (neurons,), saved.w_out.shape, (hidden,)))
    norm = (saved.norm_weight.new_empty(hidden) for _ in range(2))
    gates = x.new_empty(0 if saved.neuron_gates is None else neurons, dtype=torch.float32)
    return FeedForwardSublayerGrads._make((x.new_empty(x.shape), *linears, *norm, gates))


def _kernels(backend: Backend) -> Halves:
    return by_name(_ARGUMENTS, Halves(*backend.halves(_OP)))


def _flops(products: int, own: FeedForwardSublayerInputs | FeedForwardSublayerSaved) -> int:
    """Of so many products of the size of either linear layer's."""
    return 2 * products * own.x.shape[0] * own.x.shape[1] * active_units(own.active_neurons, own.w_in.shape[0])


_ARGUMENTS = Arguments(
    FeedForwardSublayerInputs, FeedForwardSublayerResults, FeedForwardSublayerSaved, FeedForwardSublayerGrads
)
declare(
    _OP,
    _ARGUMENTS,
    reference=without_low(reference.feed_forward_sublayer),
    run=_run_compiled,
    shapes=_shapes,
    kernels=_kernels,
    flops=Halves(partial(_flops, 2), partial(_flops, 4)),
    active="active_neurons",
)
