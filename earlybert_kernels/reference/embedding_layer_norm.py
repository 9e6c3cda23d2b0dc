"""BERT's embeddings, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .counter_rng import kept_scale


def embedding_layer_norm(
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor,
    word: Tensor,
    position: Tensor,
    token_type: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    padding_id: int | None = None,
    dropout_p: float = 0.0,
    eps: float = 1e-12,
    keep: Tensor | None = None,
) -> Tensor:
    """The definition of `ops.embedding_layer_norm`, which documents the arguments.

    Args:
        keep: bool `(T, E)`: the elements that dropout keeps. Default: drawn by `F.dropout`.
    """
    total = F.embedding(input_ids, word, padding_id) + F.embedding(token_type_ids, token_type)
    total = total + F.embedding(position_ids, position)
    out = F.layer_norm(total, total.shape[-1:], weight, bias, eps)
    return F.dropout(out, dropout_p) if keep is None else torch.where(keep, out * kept_scale(dropout_p), 0.0)
