"""The products of linear layers by the vendor's library, as torch calls it.

The signatures are those of a backend's `products` (`sublayers.Parts`). The library computes what it is given, so
`outputs` and `inputs`, a part of a weight that only the device knows, are always None.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, outputs: None = None, inputs: None = None
) -> tuple[Tensor, None]:
    """`x weight^T + bias`: `(T, I)`, `(O, I)` and `(O,)` or None -> `(T, O)`, and None: there is no activation."""
    return functional.linear(x, weight, bias), None


def linear_grad_input(
    grad_y: Tensor, weight: Tensor, *, outputs: None = None, inputs: None = None, add_to: Tensor | None = None
) -> Tensor:
    """`grad_y weight`, the gradient of `linear`'s x.

    Args:
        grad_y: `(T, O)`.
        weight: `(O, I)`.
        outputs, inputs: None.
        add_to: `(T, I)`, its dtype that of the result or float32: the gradient is added to it, in place.
    """
    if add_to is None:
        return grad_y @ weight
    if add_to.dtype == grad_y.dtype:
        return add_to.addmm_(grad_y, weight)
    return add_to.add_(grad_y @ weight)


def linear_grad_weight(grad_y: Tensor, x: Tensor, *, outputs: None = None, inputs: None = None) -> Tensor:
    """`grad_y^T x`, the gradient of `linear`'s weight `(O, I)`; arguments as there."""
    return grad_y.t() @ x
