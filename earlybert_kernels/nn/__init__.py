"""Modules built from the ops, on packed tokens."""

from .encoder import PaddingFreeEncoder
from .encoder_layer import EncoderLayer
from .packing import Packing
from .parts import LayerParts

__all__ = ["EncoderLayer", "LayerParts", "Packing", "PaddingFreeEncoder"]
