"""The positions of a batch's tokens, as a family counts them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..nn import Packing
from .family import ModelFamily


def find_positions(
    family: ModelFamily,
    config: Any,
    packing: Packing,
    input_ids: Tensor | None,
    position_ids: Tensor | None,
    *,
    is_packed: bool,
) -> Tensor:
    """The positions of the tokens of a padded `(B, S)` or a packed `(1, T)` batch.

    Those that came with a padded batch are taken as they are. Collators count those of a packed one from 0, whatever
    the model: for a family that counts from another number they say how far a token is from its sequence's first.

    Args:
        family: of the model.
        config: the model's.
        packing: where the sequences are.
        input_ids: the batch's, or None where it has embeddings.
        position_ids: the batch's, or None.
        is_packed: whether the batch came packed.

    Returns:
        int64 (or as they came), of a shape that expands to the batch's.

    Raises:
        ValueError: a sequence of a padded batch is longer than the model has positions for.
    """
    first = family.first_position(config)
    if position_ids is not None:
        if is_packed and first:
            return position_ids - _at_start(packing, position_ids.reshape(-1)) + first
        return position_ids
    if not is_packed and family.rotary is None and packing.max_seqlen > family.longest(config):
        raise ValueError(
            f"a sequence of {packing.max_seqlen} tokens is longer than the {family.longest(config)} that the model has "
            "positions for: cut it (truncation=True, max_length=...)"
        )
    if family.counts_tokens and input_ids is not None:
        counted = (input_ids != config.pad_token_id).long()
        counts = counted.cumsum(1)
        if is_packed:
            counts = counts - _at_start(packing, (counts - counted).reshape(-1))
        return counts * counted + config.pad_token_id
    places = packing.positions() if is_packed else torch.arange(packing.seq, device=packing.cu_seqlens.device)
    return places + first if first else places


def _at_start(packing: Packing, values: Tensor) -> Tensor:
    """`(T,)` values -> for each token the value of its sequence's first one."""
    return values.index_select(0, torch.arange(len(values), device=values.device) - packing.positions())
