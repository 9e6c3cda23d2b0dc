"""The head of a model that was just read: which it is, and new weights for what the checkpoint lacks of it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from earlybert_kernels.models import find_base
from earlybert_kernels.models.family import Head


def head_of(model: PreTrainedModel) -> Head:
    """What the model's family says of the head that the model is."""
    family, _ = find_base(model)
    head = family.head_of(model)
    if head is None:
        raise TypeError(f"{type(model).__name__} is no head that earlybert_kernels knows")
    return head


@torch.no_grad()
def renew(model: PreTrainedModel, absent: Iterable[str], seed: int) -> bool:
    """Draws the weights of a head that the checkpoint lacks from the seed, as models of transformers begin.

    Not as transformers has made them: what that drew depends on what else the checkpoint lacked.

    Args:
        model: with a head.
        absent: keys without weights. Those of the base model are none of the head's.
        seed: of the new weights.

    Returns:
        Whether there were any.
    """
    absent, prefix = set(absent), f"{model.base_model_prefix}."
    # A Parameter can have a second name (tied weights), by which the checkpoint has it.
    found = {p for name, p in model.named_parameters(remove_duplicate=False) if name not in absent}
    torch.manual_seed(seed)
    renewed = False
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix=path, recurse=False):
            if parameter in found or name.startswith(prefix):
                continue
            renewed = True
            if isinstance(module, nn.Linear) and parameter is module.weight:
                nn.init.normal_(parameter, std=model.config.initializer_range)
            elif isinstance(module, nn.LayerNorm) and parameter is module.weight:
                nn.init.ones_(parameter)
            else:
                nn.init.zeros_(parameter)
    return renewed
