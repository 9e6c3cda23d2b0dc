"""Model families: which module is the encoder, what its layers are made of, how to connect the fused ones.

`family` says what a family is, `bert` and the other modules that are named after `registry.MODEL_TYPES` each are the
value of one; everything else asks those values.
"""

from __future__ import annotations

import sys
from typing import Any

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
    """Raises ValueError for a model in DistributedDataParallel or `fully_shard`: they know Parameters of before."""
    wrapper = next((name for module in model.modules() for name in _wrappers(module)), None)
    if wrapper is not None:
        raise ValueError(
            f"{verb} changes modules or Parameters, and {wrapper} goes on with those that it was made with: "
            f"call {verb} before wrapping the model"
        )


def _wrappers(module: nn.Module) -> list[str]:
    """What of torch.distributed a module is itself, or has been made part of."""
    if isinstance(module, DistributedDataParallel):
        return ["DistributedDataParallel"]
    # Whoever has sharded a model has imported this.
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    return ["fully_shard"] if fsdp is not None and isinstance(module, fsdp.FSDPModule) else []
