"""Which units a ticket keeps, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def ticket_masks(scores: Sequence[Tensor], keep: int | Sequence[int], *, multiple_of: int = 1) -> Tensor:
    """The definition of `ops.ticket_masks`, which documents the arguments. Waits for the device."""
    strengths = [layer.abs() for layer in scores]
    widths = _widths(strengths, keep) if isinstance(keep, int) else keep
    widths = round_widths(widths, [len(layer) for layer in strengths], multiple_of)
    masks = []
    for layer, width in zip(strengths, widths, strict=True):
        mask = torch.zeros(len(layer), dtype=torch.bool, device=layer.device)
        mask[best_first(layer)[:width]] = True
        masks.append(mask)
    return torch.cat(masks)


def best_first(scores: Tensor) -> Tensor:
    """Indices by falling score; equal scores in order of their index."""
    return torch.sort(scores, descending=True, stable=True).indices


def _widths(scores: list[Tensor], keep: int) -> list[int]:
    """How many units each layer keeps when all of them compete for `keep` places."""
    # The best unit of every layer stays; the others compete for what is left.
    best = [int(best_first(layer)[0]) for layer in scores]
    layers = torch.cat([torch.full((len(layer),), index) for index, layer in enumerate(scores)])
    rivals = torch.cat([torch.arange(len(layer)) != best[index] for index, layer in enumerate(scores)])
    order = best_first(torch.cat(scores)[rivals.to(scores[0].device)])[: keep - len(scores)]
    return (1 + torch.bincount(layers[rivals][order.cpu()], minlength=len(scores))).tolist()


def round_widths(widths: Sequence[int], counts: Sequence[int], multiple_of: int) -> list[int]:
    """Widths as multiples of `multiple_of` (see `ops.ticket_masks`), each at most the layer's count of units."""
    if multiple_of == 1:
        return list(widths)
    most = [count // multiple_of for count in counts]
    blocks = [max(1, width // multiple_of) for width in widths]
    target = (2 * sum(widths) + multiple_of) // (2 * multiple_of)
    target = min(max(target, len(widths)), sum(most))

    def remainder(layer: int) -> int:
        return widths[layer] - blocks[layer] * multiple_of

    layers = range(len(widths))
    while sum(blocks) < target:
        # max and min return the first of equals: the lower layer is served first and pays last.
        layer = max((i for i in layers if blocks[i] < most[i]), key=remainder)
        blocks[layer] += 1
    while sum(blocks) > target:
        layer = min((i for i in reversed(layers) if blocks[i] > 1), key=remainder)
        blocks[layer] -= 1
    return [block * multiple_of for block in blocks]
