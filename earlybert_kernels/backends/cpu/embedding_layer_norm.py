"""Calls the kernels of BERT's embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import address
from . import empty, extension, run


def forward(
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor,
    word: Tensor,
    position: Tensor,
    token_type: Tensor,
    weight: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    padding_id: int,
    dropout_p: float,
    eps: float,
    saves: bool = True,
) -> tuple[Tensor, Any, Any]:
    """`out (T, E)`, and, None unless `saves`, `mean (T,)` and `rstd (T,)`; see `ops.embedding_layer_norm`."""
    ids = [t.contiguous() for t in (input_ids, position_ids, token_type_ids)]
    tables = [t.contiguous() for t in (word, position, token_type)]
    weight, bias = weight.contiguous(), bias.contiguous()
    tokens, cols = len(input_ids), word.shape[1]
    out = empty(tokens, cols)
    mean, rstd = (empty(tokens) if saves else None for _ in range(2))
    run(
        extension.embedding_layer_norm_forward,
        tokens,
        cols,
        tuple((t.data_ptr(), len(t), own.data_ptr(), 0) for t, own in zip(tables, ids, strict=True)),
        weight.data_ptr(),
        address(seed),
        dropout_p,
        bias.data_ptr(),
        eps,
        out.data_ptr(),
        address(mean),
        address(rstd),
    )
    return out, mean, rstd


def backward(
    grad_out: Tensor,
    mean: Tensor,
    rstd: Tensor,
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor,
    word: Tensor,
    position: Tensor,
    token_type: Tensor,
    weight: Tensor,
    seed: Tensor | None,
    padding_id: int,
    dropout_p: float,
) -> tuple[Tensor, ...]:
    """The gradients of word, position, token_type, weight and bias."""
    ids = [t.contiguous() for t in (input_ids, position_ids, token_type_ids)]
    tables = [t.contiguous() for t in (word, position, token_type)]
    grad_out, weight = grad_out.contiguous(), weight.contiguous()
    # Not torch.zeros, which would write every element of a vocabulary of which a batch touches 1%: numpy asks the
    # system for zeroed pages, which come into being when they are touched.
    grads = [torch.from_numpy(np.zeros(table.shape, np.float32)) for table in tables]
    grad_weight, grad_bias = empty(weight.shape), empty(weight.shape)
    run(
        extension.embedding_layer_norm_backward,
        *grad_out.shape,
        tuple((t.data_ptr(), len(t), i.data_ptr(), g.data_ptr()) for t, i, g in zip(tables, ids, grads, strict=True)),
        weight.data_ptr(),
        address(seed),
        dropout_p,
        grad_out.data_ptr(),
        mean.data_ptr(),
        rstd.data_ptr(),
        padding_id,
        grad_weight.data_ptr(),
        grad_bias.data_ptr(),
    )
    return *grads, grad_weight, grad_bias
