"""Masked feed-forward block, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

#: Activations by name. `gelu` is the exact one, with erf, as BERT uses it.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


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
) -> Tensor:
    """The definition of `ops.feed_forward`, which documents the arguments: two linear layers on the kept neurons."""
    if neuron_mask is not None:
        kept = neuron_mask.nonzero().squeeze(1)
        w_in, b_in, w_out = w_in[kept], b_in[kept], w_out[:, kept]
        neuron_gates = None if neuron_gates is None else neuron_gates[kept]
    h = ACTIVATIONS[activation](F.linear(x, w_in, b_in))
    if neuron_gates is not None:
        h = (h * neuron_gates).to(h.dtype)
    return F.linear(h, w_out, b_out)
