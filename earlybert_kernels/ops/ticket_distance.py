"""How far two masks are apart."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..backends import backends_with
from .checks import check_same_device, check_shape
from .dispatch import choose, register, register_reference

_OP = "ticket_distance"


def ticket_distance(a: Tensor, b: Tensor, *, backend: str | None = None) -> Tensor:
    """The share of kept units that only one of two masks keeps: `|a xor b| / (|a| + |b|)`, as `Ticket.distance` has it.

    0 for equal masks (empty ones too), 1 where they share nothing. For masks of equal size it is the mask distance of
    Early-Bird Tickets (You et al., arXiv 1909.11957, section 3.2), which divides by all units instead, over 2(1 - p)
    where a share p is dropped. Nothing is read back from a GPU, so that a CUDA graph can capture it.

    Args:
        a: bool `(units,)`, True where a unit is kept: of all layers, as `ticket_masks` gives them.
        b: likewise.
        backend: one of `ops.backends("ticket_distance")`; default: the best that takes these tensors, plain
            PyTorch where the one that is forced for the process does not.

    Returns:
        float64, without dimensions.

    Raises:
        ValueError: the shapes or devices of the two do not fit together.
        TypeError: one is not bool.
        BackendUnavailableError: the backend that was asked for cannot run this call.
    """
    for name, mask in (("a", a), ("b", b)):
        if mask.dtype != torch.bool:
            raise TypeError(f"{_OP}: {name} is {mask.dtype}, expected torch.bool (True = kept)")
    check_shape(_OP, "a", a, (None,), "(units,)")
    check_shape(_OP, "b", b, (len(a),), "that of a: one entry a unit")
    check_same_device(_OP, a=a, b=b)
    return choose(_OP, backend, a, b)(a, b)


register_reference(_OP, reference.ticket_distance, stands_in=True)
for _backend in backends_with(_OP):
    register(_OP, _backend, _backend.function(_OP, _OP))
