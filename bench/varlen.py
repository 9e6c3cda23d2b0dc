"""torch's attention of packed sequences on a GPU: without a padded token, the peer of our op.

`varlen`: `torch.nn.attention.varlen.varlen_attn` (since torch 2.10, with a backward), which knows no dropout.
`flash-varlen`: the operator below it, `aten._flash_attention_forward`, which does. Half precision alone.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attention(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Bidirectional attention of each sequence to itself, with gradients.

    Args:
        name: `"varlen"` or `"flash-varlen"`.
        q, k, v: `(T, H, D)`.
        cu_seqlens: int32 `(sequences + 1,)`, where sequences begin and end.
        max_seqlen: tokens of the longest one.
        dropout_p: probability of dropping an attention weight.
        scale: factor on the scores; default `D ** -0.5`.

    Returns:
        `(T, H, D)`.

    Raises:
        RuntimeError: torch has it not, or it takes no such tensors or dropout.
    """
    if name == "flash-varlen":
        return torch.ops.aten._flash_attention_forward(
            q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, dropout_p, False, False, scale=scale
        )[0]
    if dropout_p:
        raise RuntimeError("torch.nn.attention.varlen.varlen_attn has no dropout")
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        raise RuntimeError(f"torch {torch.__version__} has no torch.nn.attention.varlen") from None
    return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, scale=scale)
