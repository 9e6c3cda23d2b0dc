"""Model families: which module is the encoder, what its layers are made of, how to connect the fused ones.

`family` says what a family is, `bert` and the other modules that are named after `registry.MODEL_TYPES` each are the
value of one; everything else asks those values.
"""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from . import compact_models  # noqa: F401 makes transformers know compact models
from .checks import check_convertible
from .layers import layer_parts
from .loaded import encoder_gaps
from .registry import families, family_of_type, find_base, head_of

__all__ = [
    "check_convertible",
    "encoder_gaps",
    "families",
    "family_of_type",
    "find_base",
    "head_of",
    "layer_parts",
    "refuse_distributed",
]


def refuse_distributed(model: nn.Module, verb: str) -> None:
    """Raises ValueError for a model in DistributedDataParallel, which would not reduce Parameters made since."""
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise ValueError(
            f"{verb} changes which Parameters there are, and DistributedDataParallel goes on reducing those that it "
            f"was made with: call {verb} before wrapping the model"
        )
