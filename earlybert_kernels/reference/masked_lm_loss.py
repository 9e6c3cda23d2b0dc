"""Masked-language-model loss on the labelled rows, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_lm_loss(
    hidden: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    max_labelled: int | None = None,
) -> Tensor:
    """The definition of `ops.masked_lm_loss`, which documents the arguments; `max_labelled` changes nothing."""
    labelled = (labels != ignore_index).nonzero().squeeze(1)
    logits = F.linear(hidden[labelled], weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = F.cross_entropy(logits, labels[labelled], reduction="sum")
    return total / max(labelled.numel(), 1)
