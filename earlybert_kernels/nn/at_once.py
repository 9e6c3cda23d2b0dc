"""All layers of an encoder by one call, where nothing but its result is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.nn.modules import module

from ..backends import cpu
from ..ops.checks import check_offsets
from ..ops.dispatch import chosen
from ..ops.transforms import only_values_count
from .encoder_layer import EncoderLayer, rate
from .plain import extension
from .post_norm_layer import PostNormLayer

_PLAIN = {Tensor, torch.nn.Parameter}


def forward_at_once(
    layers: Sequence[EncoderLayer], x: Tensor, cu_seqlens: Tensor, max_seqlen: int, first_token_only: bool
) -> Tensor | None:
    """The output of the last of the layers, or None where they have to be called one by one.

    One call does on a CPU, in float32, where no gradient can come, if sublayers end with a norm and nothing is masked,
    gated, dropped, hooked or traced. It has the same bits: the kernels are the same.

    Raises:
        TypeError: a module inside a layer was replaced or extended after the layer was made.
        ValueError: the offsets do not fit x.
    """
    if not x.is_cpu or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not only_values_count():
        return None
    plain = [layer for layer in layers if _is_plain(layer)]
    if not plain or len(plain) < len(layers) or module._has_any_global_hook():
        return None
    for layer in plain:
        layer.check_children()
    own, parts = [_own(layer) for layer in plain], plain[0].parts
    if len({(layer.parts.head_size, layer.parts.activation) for layer in plain}) > 1:
        return None
    if not {type(x), *(type(t) for each in own for t in each.tensors)} <= _PLAIN:
        return None
    if cpu.unavailable() or cpu.refuses(x, cu_seqlens) or cpu.encoder.refuses(x, own, parts.head_size):
        return None
    tokens, attention, feed_forward = x.shape[0], own[0].tensors[:10], own[0].tensors[10:]
    facts = {"size": tokens, "head_size": parts.head_size, "max_seqlen": max_seqlen}
    if chosen("attention_sublayer", None, x, cu_seqlens, *attention, None, None, **facts) != "cpu":
        return None
    if chosen("feed_forward_sublayer", None, x, *feed_forward, None, None, size=tokens) != "cpu":
        return None
    check_offsets("attention_sublayer", "cu_seqlens", cu_seqlens, tokens, max_seqlen, least=int(first_token_only))
    return cpu.encoder.forward(
        x,
        cu_seqlens,
        max_seqlen,
        own,
        head_size=parts.head_size,
        activation=parts.activation,
        first_token_only=first_token_only,
    )


def _is_plain(layer: EncoderLayer) -> TypeGuard[PostNormLayer]:
    """Whether calling the layer would be its sublayers and no more, on all units and without dropout."""
    if not isinstance(layer, PostNormLayer) or extension(layer) is not None:
        return False
    if any(t is not None for t in (layer.active_heads, layer.active_neurons, layer.head_gates, layer.neuron_gates)):
        return False
    parts = layer.parts
    attention_rate = parts.attention_dropout.p if parts.self_attention.training else 0.0
    return not (attention_rate or rate(parts.attention_output_dropout) or rate(parts.output_dropout))


def _own(layer: PostNormLayer) -> cpu.encoder.Layer:
    """What a layer computes with; None in the place of what is no plain Parameter of its module."""
    parts = layer.parts
    tensors: list[Any] = []
    for each in (*parts.attention_linears, parts.attention_norm, *parts.feed_forward_linears, parts.output_norm):
        own = each._parameters
        tensors += own.get("weight"), own.get("bias")
    return cpu.encoder.Layer(tensors, parts.attention_norm.eps, parts.output_norm.eps)
