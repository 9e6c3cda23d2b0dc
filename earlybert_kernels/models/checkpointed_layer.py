"""The encoder layers that transformers can checkpoint."""

from __future__ import annotations

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..nn import EncoderLayer, LayerParts, PostNormLayer, PostNormParts, PreNormLayer, PreNormParts


class CheckpointedPostNormLayer(PostNormLayer, GradientCheckpointingLayer):
    """A layer that transformers finds when gradient checkpointing is switched on, for some layers or all.

    While `gradient_checkpointing` is set and the layer trains, it is recomputed in the backward pass.
    """


class CheckpointedPreNormLayer(PreNormLayer, GradientCheckpointingLayer):
    """The same of the other kind."""


_LAYERS = {PostNormParts: CheckpointedPostNormLayer, PreNormParts: CheckpointedPreNormLayer}


def fused_layer(stock: nn.Module, parts: LayerParts) -> EncoderLayer:
    """The fused layer for a stock one of these parts."""
    return _LAYERS[type(parts)](stock, parts)
