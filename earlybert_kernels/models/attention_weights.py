"""Attention weights for those who want to look at them: the fused layers never write them to memory."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..nn import EncoderLayer, Packing
from ..nn.rotary import Rotary
from ..units import unit_list


def attention_weights(
    layers: Sequence[EncoderLayer], inputs: Sequence[Tensor], packing: Packing, rotary: Mapping[str, Rotary] | None
) -> tuple[Tensor, ...]:
    """The attention probabilities of every layer, computed from its input once more, without dropout.

    Slow, and as large as what the kernels are there to avoid. No gradient of the model's output flows through them.

    Args:
        layers: the converted layers.
        inputs: `(T, E)` each, what every layer was given (there may be more).
        packing: where the sequences are.
        rotary: as `PaddingFreeEncoder` takes it.

    Returns:
        Per layer `(B, heads, S, S)`, zero in the rows and columns of padding and for heads that a ticket drops; of a
        packed batch of several sequences `(sequences, heads, max_seqlen, max_seqlen)`.
    """
    warnings.warn(
        "output_attentions=True computes attention a second time and slowly; leave it out where nothing reads it",
        stacklevel=2,
    )
    return tuple(_layer_weights(layer, x, packing, rotary) for layer, x in zip(layers, inputs, strict=False))


def _layer_weights(layer: Any, x: Tensor, packing: Packing, rotary: Mapping[str, Rotary] | None) -> Tensor:
    parts = layer.parts
    kept = torch.zeros(parts.num_heads, dtype=torch.bool)
    kept[unit_list(layer.active_heads, parts.num_heads)] = True
    heads = layer.queries_and_keys(x, *(() if rotary is None else (rotary[parts.positions],)))
    q, k = (_rows(packing, each.flatten(1)).unflatten(-1, (-1, parts.head_size)).transpose(1, 2) for each in heads)
    real = _rows(packing, torch.ones(x.shape[0], 1, dtype=x.dtype, device=x.device))
    is_key = real.squeeze(-1)[:, None, None, :] != 0
    scores = (q @ k.transpose(-1, -2) * parts.head_size**-0.5).masked_fill(~is_key, torch.finfo(q.dtype).min)
    if parts.window is not None:
        places = torch.arange(scores.shape[-1], device=scores.device)
        scores = scores.masked_fill((places[:, None] - places).abs() > parts.window, torch.finfo(q.dtype).min)
    probabilities = functional.softmax(scores, dim=-1)
    return probabilities * is_key * is_key.transpose(-1, -2) * kept.to(x.device)[:, None, None]


def _rows(packing: Packing, x: Tensor) -> Tensor:
    """`(T, width)` -> `(B, S, width)`; of a packed batch of several sequences `(sequences, max_seqlen, width)`."""
    if packing.sequences != packing.batch:
        return packing.rows(x, fill=0.0)
    return packing.pad(x)[0]
