"""The encoder layer that transformers can checkpoint."""

from __future__ import annotations

from transformers.modeling_layers import GradientCheckpointingLayer

from ..nn import EncoderLayer


class CheckpointedEncoderLayer(EncoderLayer, GradientCheckpointingLayer):
    """An `EncoderLayer` that transformers finds when gradient checkpointing is switched on, for some layers or all.

    While `gradient_checkpointing` is set and the layer trains, it is recomputed in the backward pass.
    """
