"""Which units a ticket keeps, found on the device: one launch, or two where layers compete."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...reference.ticket_masks import round_widths
from .. import address, cuda

_MAX_LAYERS = 0 if cuda.extension is None else cuda.extension.TICKET_MAX_LAYERS


def refuses(*scores: Tensor) -> str | None:
    """Why scores, one tensor a layer, cannot be taken (device, dtype, number), or None."""
    if len(scores) > _MAX_LAYERS:
        return f"it takes up to {_MAX_LAYERS} layers, got {len(scores)}"
    return cuda.refuses(*scores)


@torch.no_grad()
def ticket_masks(scores: Sequence[Tensor], keep: int | Sequence[int], *, multiple_of: int) -> Tensor:
    """See `ops.ticket_masks`. Nothing is read back."""
    scores = [layer.float().contiguous() for layer in scores]
    counts, first = [len(layer) for layer in scores], scores[0]
    if isinstance(keep, int):
        together, known = keep, [0] * len(scores)
        widths = torch.empty(len(scores), dtype=torch.int32, device=first.device)
    else:
        together, known, widths = 0, round_widths(keep, counts, multiple_of), None
    mask = torch.empty(sum(counts), dtype=torch.bool, device=first.device)
    cuda.extension.ticket_masks(
        *cuda.launch(first),
        [(layer.data_ptr(), count, width) for layer, count, width in zip(scores, counts, known, strict=True)],
        together,
        multiple_of,
        address(widths),
        mask.data_ptr(),
    )
    return mask
