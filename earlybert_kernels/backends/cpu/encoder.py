"""Calls the kernel of all layers of an encoder: forward alone, with nothing kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import ACTIVATIONS
from . import empty, extension, run


class Layer(NamedTuple):
    """A layer whose two sublayers end with a norm, and none of whose units is left out.

    Attributes:
        tensors: weight and bias of each of query, key, value, the attention's output projection, its norm, the two
            linear layers of the feed-forward block, and its norm.
        attention_eps, output_eps: of the norms.
    """

    tensors: Sequence[Tensor]
    attention_eps: float
    output_eps: float


def refuses(x: Tensor, layers: Sequence[Layer], head_size: int) -> str | None:
    """Why these layers cannot be taken, or None. What the kernel reads is where their shapes say."""
    hidden = x.shape[1]
    for layer in layers:
        inner, neurons = layer.tensors[0].shape[0], layer.tensors[10].shape[0]
        projection, whole = [(inner, hidden), (inner,)], [(hidden,), (hidden,)]
        attention = [*projection * 3, (hidden, inner), (hidden,), *whole]
        shapes = [*attention, (neurons, hidden), (neurons,), (hidden, neurons), (hidden,), *whole]
        if inner % head_size or [t.shape for t in layer.tensors] != shapes:
            return "shapes do not fit together"
        if not all(t.dtype == torch.float32 and t.is_cpu and t.is_contiguous() for t in layer.tensors):
            return "it takes contiguous float32 tensors on the CPU"
    return None


def forward(
    x: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    layers: Sequence[Layer],
    *,
    head_size: int,
    activation: str,
    first_token_only: bool,
) -> Tensor:
    """The last layer's output, `(T, E)` or, with `first_token_only`, `(B, E)`, with the same bits as layer by layer.

    Args:
        x: `(T, E)`, float32.
        cu_seqlens, max_seqlen: as in `ops.attention`; with `first_token_only` no sequence is empty.
        layers: which `refuses` does not refuse.
        head_size, activation: of all layers.
        first_token_only: compute the last layer for the first token of each sequence alone.
    """
    x, cu_seqlens = x.contiguous(), cu_seqlens.contiguous()
    (tokens, hidden), sequences = x.shape, len(cu_seqlens) - 1
    given = [
        (
            layer.tensors[0].shape[0] // head_size,
            layer.tensors[10].shape[0],
            layer.attention_eps,
            layer.output_eps,
            [tensor.data_ptr() for tensor in layer.tensors],
        )
        for layer in layers
    ]
    out = empty(sequences if first_token_only else tokens, hidden)
    run(
        extension.encoder_forward,
        (sequences, tokens, max_seqlen, hidden, head_size),
        head_size**-0.5,
        cu_seqlens.data_ptr(),
        given,
        ACTIVATIONS.index(activation),
        first_token_only,
        x.data_ptr(),
        out.data_ptr(),
    )
    return out
