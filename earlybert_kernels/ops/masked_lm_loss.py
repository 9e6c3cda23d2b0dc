"""Masked-language-model loss on the labelled rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from .checks import check_same_device, check_shape
from .dispatch import choose, register

_OP = "masked_lm_loss"
register(_OP, "reference", reference.masked_lm_loss)


def masked_lm_loss(
    hidden: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    backend: str | None = None,
) -> Tensor:
    """Mean cross-entropy of the decoder `hidden weight^T + bias` over the labelled rows, computing only those.

    Args:
        hidden: `(T, E)`, any floating dtype: what the decoder reads.
        labels: int64 `(T,)`: a token id, or `ignore_index` where the row has no label.
        weight: `(V, E)`; bias: `(V,)` or None.
        ignore_index: the label of a row that does not count.
        backend: one of `ops.backends("masked_lm_loss")`; default: the best that takes these tensors.

    Returns:
        A scalar in float32 (float64 for float64 inputs); 0, with zero gradients, when no row is labelled.

    Raises:
        ValueError: shapes or devices do not fit together.
        TypeError: labels are not int64.
        RuntimeError: the backend that was asked for cannot run this call.
    """
    if weight.dim() != 2:
        raise ValueError(f"{_OP}: weight has shape {tuple(weight.shape)}, expected (vocabulary, hidden size)")
    vocabulary, size = weight.shape
    check_shape(_OP, "hidden", hidden, (None, size), f"(tokens, {size}) to fit weight")
    check_shape(_OP, "labels", labels, (hidden.shape[0],), f"({hidden.shape[0]},), one label a row")
    if labels.dtype != torch.int64:
        raise TypeError(f"{_OP}: labels are {labels.dtype}, expected torch.int64")
    if bias is not None:
        check_shape(_OP, "bias", bias, (vocabulary,), f"({vocabulary},) to fit weight")
    check_same_device(_OP, hidden=hidden, labels=labels, weight=weight, bias=bias)
    run = choose(_OP, backend, hidden, labels, weight, bias)
    return run(hidden, labels, weight, bias, ignore_index=ignore_index)
