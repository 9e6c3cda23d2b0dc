"""Modules built from the ops, on packed tokens."""

from .encoder import PaddingFreeEncoder, PaddingFreeList
from .encoder_layer import EncoderLayer
from .packing import Packing
from .parts import LayerParts, PostNormParts, PreNormParts
from .post_norm_layer import PostNormLayer
from .pre_norm_layer import PreNormLayer

__all__ = [
    "EncoderLayer",
    "LayerParts",
    "Packing",
    "PaddingFreeEncoder",
    "PaddingFreeList",
    "PostNormLayer",
    "PostNormParts",
    "PreNormLayer",
    "PreNormParts",
]
