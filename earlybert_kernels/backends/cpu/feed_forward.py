"""The feed-forward block as two linear layers, the activation in the epilogue of the first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import empty, linear
from .linear import Kept


def _kept(
    w_in: Tensor, w_out: Tensor, active: Tensor | None, gates: Tensor | None, bfloat16: bool
) -> tuple[Kept, Kept]:
    if active is not None and gates is not None:
        gates = gates.index_select(0, active)
    return (
        Kept(w_in, out_units=active, bfloat16=bfloat16),
        Kept(w_out, in_units=active, in_scale=gates, bfloat16=bfloat16),
    )


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
    *,
    bfloat16: bool = False,
) -> tuple[Tensor, Any]:
    """The output `(T, E)`, and the active neurons' values before the activation `(T, active)`, None unless `saves`.

    `active`, int64, lists the neurons to compute; `bfloat16`, or an x that is, rounds what products take, and what lies
    between them is then bfloat16; the output is as x. The rest is as in `ops.feed_forward`.
    """
    bfloat16 = bfloat16 or x.dtype == torch.bfloat16
    first, second = _kept(w_in, w_out, active, gates, bfloat16)
    inner = torch.bfloat16 if bfloat16 else torch.float32
    h, preactivation = linear.forward(x, first, b_in, activation=activation, dtype=inner, saves=saves)
    out, _ = linear.forward(h, second, b_out, dtype=x.dtype)
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
    bfloat16: bool = False,
) -> tuple[Tensor, ...]:
    """The gradients of x, w_in, b_in, w_out, b_out and gates (empty without); that of x is added to `grad_x`."""
    bfloat16 = bfloat16 or x.dtype == torch.bfloat16
    first, second = _kept(w_in, w_out, active, gates, bfloat16)
    grad_h, grad_w_out, grad_b_out, grad_gates = linear.backward(
        grad_out, None, second, activation=activation, preactivation=preactivation
    )
    grad_x, grad_w_in, grad_b_in, _ = linear.backward(grad_h, x, first, grad_x=grad_x)
    if gates is None:
        grad_gates = empty(0)
    elif active is not None:
        grad_gates = gates.new_zeros(gates.shape).index_copy_(0, active, grad_gates)
    return grad_x, grad_w_in, grad_b_in, grad_w_out, grad_b_out, grad_gates
