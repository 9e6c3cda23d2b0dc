"""The products of linear layers, each run by this backend's kernel or the vendor's library, as a shipped table says.

The library computes what it is given; where only the device knows how much of a weight is in use (`Used`), the kernel
runs, whose cost follows that.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import nearest, vendor
from .activation_kernels import activation_backward, activation_forward
from .launch import architecture
from .matmul import Tile, Used, matmul, matmul_activation_backward

#: What a product is for. Those with an activation have it in the kernel's epilogue.
KINDS = ("forward", "forward_activation", "grad_input", "grad_input_activation", "grad_weight")

_FLOAT32_TILE = Tile(64, 64, 32, 4, 3)


@cache
def table() -> dict:
    """The table: by architecture, then by kind, entries in order of the tokens from which on they hold."""
    return json.loads((Path(__file__).parent / "products.json").read_text())


def choice(kind: str, x: Tensor, tokens: int) -> tuple[bool, Tile, int]:
    """Whether the library computes a product, and how the kernel does.

    Args:
        kind: of `KINDS`.
        x: one of its operands.
        tokens: rows of the layer's input.

    Returns:
        Whether the library is the faster where it can be used, the kernel's tile, and its parts of the inner
        dimension.
    """
    entries = nearest(table()["architectures"], architecture(x))[kind]
    entry = [entry for entry in entries if tokens >= entry["from_tokens"]][-1]
    if x.dtype == torch.float32:  # the library's business, unless the kernel has to run
        return True, _FLOAT32_TILE, 1
    return entry["run"] == "library", Tile(*entry["tile"]), entry.get("parts", 1)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    activation: str = "none",
    outputs: Used | None = None,
    inputs: Used | None = None,
    saves: bool = True,
) -> tuple[Tensor, Any]:
    """`activation(x weight^T + bias)`.

    Args:
        x: `(T, I)`.
        weight: `(O, I)`; bias: `(O,)` or None.
        activation: "none" or a name of `reference.feed_forward.ACTIVATIONS`.
        outputs, inputs: how much of O or of I is in use (not of both); None for all. The rest of the result is not
            written.
        saves: whether to keep what the activation is applied to.

    Returns:
        `(T, O)`, and what the activation was applied to (None without one, or unless `saves`).
    """
    kind = "forward" if activation == "none" else "forward_activation"
    library, tile, _ = choice(kind, x, x.shape[0])
    used = _used(n=outputs, k=inputs)
    if not library or used is not None:
        return matmul(x, weight.t(), tile, used=used, bias=bias, activation=activation, saves=saves)
    y, _ = vendor.linear(x, weight, bias)
    return (y, None) if activation == "none" else (activation_forward(y, activation), y if saves else None)


def linear_grad_input(
    grad_y: Tensor,
    weight: Tensor,
    *,
    outputs: Used | None = None,
    inputs: Used | None = None,
    add_to: Tensor | None = None,
) -> Tensor:
    """`grad_y weight`, the gradient of `linear`'s x.

    Args:
        grad_y: `(T, O)`.
        weight, outputs, inputs: as in `linear`.
        add_to: `(T, I)`, contiguous, its dtype that of the result or float32: the gradient is added to it, in place.
    """
    library, tile, _ = choice("grad_input", grad_y, grad_y.shape[0])
    used = _used(n=inputs, k=outputs)
    if not library or used is not None:
        return matmul(grad_y, weight, tile, used=used, add_to=add_to)[0]
    return vendor.linear_grad_input(grad_y, weight, add_to=add_to)


def linear_grad_preactivation(
    grad_y: Tensor, weight: Tensor, preactivation: Tensor, activation: str, *, inputs: Used | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of what an activation in front of a linear layer was applied to.

    Args:
        grad_y, weight, inputs: as in `linear_grad_input`; `weight` is of the layer behind the activation.
        preactivation: `(T, I)`, contiguous.
        activation: a name of `reference.feed_forward.ACTIVATIONS`.

    Returns:
        That gradient `(T, I)`, `activation(preactivation)`, and the gradient's sums over tokens `(I,)`, float32.
    """
    library, tile, _ = choice("grad_input_activation", grad_y, grad_y.shape[0])
    if not library or inputs is not None:
        used = _used(n=inputs)
        return matmul_activation_backward(grad_y, weight, preactivation, tile, activation, used=used)
    return activation_backward(vendor.linear_grad_input(grad_y, weight), preactivation, activation)


def linear_grad_weight(grad_y: Tensor, x: Tensor, *, outputs: Used | None = None, inputs: Used | None = None) -> Tensor:
    """`grad_y^T x`, the gradient of `linear`'s weight `(O, I)`; arguments as there."""
    library, tile, parts = choice("grad_weight", grad_y, grad_y.shape[0])
    used = _used(m=outputs, n=inputs)
    if not library or used is not None:
        return matmul(grad_y.t(), x, tile, used=used, parts=parts)[0]
    return vendor.linear_grad_weight(grad_y, x)


def _used(**dimensions: Used | None) -> tuple[str, Used] | None:
    """The one dimension of the product that is in use in part, if there is one."""
    return next(((name, used) for name, used in dimensions.items() if used is not None), None)
