"""The self-attention sublayer, composed of other ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..units import fold_gates, head_rows, indices
from .attention import attention
from .dropout_add_layer_norm import dropout_add_layer_norm


def attention_sublayer(
    x: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    w_q: Tensor,
    b_q: Tensor,
    w_k: Tensor,
    b_k: Tensor,
    w_v: Tensor,
    b_v: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    head_size: int,
    active_heads: Tensor | None = None,
    head_gates: Tensor | None = None,
    first_token_only: bool = False,
    attention_dropout_p: float = 0.0,
    dropout_p: float = 0.0,
    eps: float = 1e-12,
) -> Tensor:
    """The definition of `ops.attention_sublayer`, which documents the arguments."""
    if active_heads is not None:
        active_heads = indices(active_heads)
        rows = head_rows(active_heads, head_size)
        w_q, w_k, w_v, b_q, b_k, b_v = (t.index_select(0, rows) for t in (w_q, w_k, w_v, b_q, b_k, b_v))
        w_out = w_out.index_select(1, rows)
        head_gates = None if head_gates is None else head_gates.index_select(0, active_heads)
    if head_gates is not None:
        w_out = fold_gates(w_out, head_gates, columns=head_size)
    queries, query_packing = x, dict[str, Any]()
    if first_token_only:
        queries = x.index_select(0, cu_seqlens[:-1])
        starts = torch.arange(cu_seqlens.numel(), dtype=torch.int32, device=x.device)
        query_packing = {"cu_seqlens_q": starts, "max_seqlen_q": 1}
    q, k, v = (
        linear(source, w, b).view(source.shape[0], w.shape[0] // head_size, head_size)
        for source, w, b in ((queries, w_q, b_q), (x, w_k, b_k), (x, w_v, b_v))
    )
    context = attention(q, k, v, cu_seqlens, max_seqlen, dropout_p=attention_dropout_p, **query_packing)
    h = linear(context.flatten(1), w_out, b_out)
    return dropout_add_layer_norm(h, queries, norm_weight, norm_bias, dropout_p=dropout_p, eps=eps)
