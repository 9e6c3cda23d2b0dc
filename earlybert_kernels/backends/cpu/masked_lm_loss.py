"""The masked-language-model loss: logits of the labelled rows, which their own gradient then overwrites."""

from __future__ import annotations

import torch
from torch import Tensor

from . import empty, extension, linear, run
from .linear import Kept


def forward(
    hidden: Tensor, labels: Tensor, rows: Tensor, weight: Tensor, bias: Tensor | None, bfloat16: bool
) -> tuple[Tensor, Tensor]:
    """The mean loss over `rows`, and its gradient by their logits `(rows, V)`.

    `rows`, int64, are those that are labelled, and after them any number of -1, which stand for none.
    """
    room, rows = len(rows), _labelled(rows)
    logits, _ = linear.forward(hidden, Kept(weight, bfloat16=bfloat16), bias, x_rows=rows)
    labels = labels.index_select(0, rows)
    losses, scale = empty(len(rows)), 1.0 / max(len(rows), 1)
    run(extension.cross_entropy, *logits.shape, logits.data_ptr(), labels.data_ptr(), scale, losses.data_ptr())
    return losses.sum() * scale, torch.nn.functional.pad(logits, (0, 0, 0, room - len(rows)))


def backward(
    grad_loss: Tensor, grad_logits: Tensor, hidden: Tensor, rows: Tensor, weight: Tensor, bfloat16: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of hidden, weight and bias."""
    rows = _labelled(rows)
    grad_logits = grad_logits[: len(rows)]
    # The factor goes to the small tensors: those of the vocabulary's size are gone through once.
    picked = hidden.index_select(0, rows) * grad_loss
    grad_picked, grad_weight, grad_bias, _ = linear.backward(grad_logits, picked, Kept(weight, bfloat16=bfloat16))
    grad_hidden = hidden.new_zeros(hidden.shape).index_copy_(0, rows, grad_picked * grad_loss)
    return grad_hidden, grad_weight, grad_bias * grad_loss


def _labelled(rows: Tensor) -> Tensor:
    return rows[: int((rows >= 0).sum())]
