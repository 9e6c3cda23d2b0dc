"""Which units a ticket keeps, given how much each is worth."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import reference
from ..backends import backends_with
from .checks import check_shape
from .dispatch import choose, register, register_reference

_OP = "ticket_masks"


def ticket_masks(
    scores: Sequence[Tensor], keep: int | Sequence[int], *, multiple_of: int = 1, backend: str | None = None
) -> Tensor:
    """The units with the largest |score|, as EarlyBERT draws them (Chen et al., arXiv 2101.00063, section 3.2).

    Of equal scores the unit of the lower layer, then of the lower index, is kept first; NaN comes before all numbers.
    `cuda` reads nothing back from the GPU, so that a CUDA graph can capture it; plain PyTorch waits.

    Args:
        scores: per layer `(units,)`, one device, any floating dtype.
        keep: for each layer how many of its units stay, at least one and at most all of them. Or one number for all
            layers together, at least one a layer and at most all units: the best unit of every layer stays, and the
            others compete for the places that are left.
        multiple_of: with m > 1 every layer keeps a multiple of m: the total is rounded to the nearest multiple of m
            (halves up); each layer gets its width divided by m, rounded down, and the blocks of m that are then left go
            to the layers with the largest remainders, the lower layer first. A layer has at least one block and no
            more than fit its units.
        backend: one of `ops.backends("ticket_masks")`; default: the best that takes these tensors, plain
            PyTorch where the one that is forced for the process does not. `cuda` takes float32, float16 and bfloat16,
            up to 64 layers.

    Returns:
        bool `(units of all layers,)`, layer after layer: True where a unit stays.

    Raises:
        ValueError: there are no layers or no units in one, `keep` or `multiple_of` is out of range, or scores are on
            several devices.
        TypeError: scores are not floating-point.
        BackendUnavailableError: the backend that was asked for cannot run this call.
    """
    if not scores:
        raise ValueError(f"{_OP}: there are no scores; expected a tensor for each layer")
    for number, layer in enumerate(scores):
        check_shape(_OP, f"scores of layer {number}", layer, (None,), "(units,)")
        if not layer.is_floating_point():
            raise TypeError(f"{_OP}: scores of layer {number} are {layer.dtype}, expected a floating dtype")
        if layer.device != scores[0].device:
            raise ValueError(f"{_OP}: scores are on {scores[0].device} and on {layer.device}, expected one device")
    counts = [len(layer) for layer in scores]
    if min(counts) == 0:
        raise ValueError(f"{_OP}: layer {counts.index(0)} has no units")
    if isinstance(keep, int):
        if not len(counts) <= keep <= sum(counts):
            raise ValueError(f"{_OP}: keep is {keep}, expected {len(counts)} (one a layer) to {sum(counts)} (all)")
    elif len(keep) != len(counts) or not all(1 <= k <= count for k, count in zip(keep, counts, strict=True)):
        raise ValueError(f"{_OP}: keep is {list(keep)}, expected for each layer 1 to all of its units: {counts}")
    if not 1 <= multiple_of <= min(counts):
        raise ValueError(f"{_OP}: multiple_of is {multiple_of}, expected 1 to the smallest layer's {min(counts)} units")
    run = choose(_OP, backend, *scores)
    return run(scores, keep, multiple_of=multiple_of)


register_reference(_OP, reference.ticket_masks, stands_in=True)
for _backend in backends_with(_OP):
    register(_OP, _backend, _backend.function(_OP, _OP))
