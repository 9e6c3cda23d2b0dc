"""Masked-language-model loss on the labelled rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .. import reference
from ..backends.arguments import MaskedLmLossGrads, MaskedLmLossInputs, MaskedLmLossResults, MaskedLmLossSaved
from ..backends.backend import Backend
from .autocast import factors
from .checks import check_same_device, check_shape
from .custom import Halves
from .declare import Arguments, declare
from .dispatch import choose

_OP = "masked_lm_loss"


def masked_lm_loss(
    hidden: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    max_labelled: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Mean cross-entropy of the decoder `hidden weight^T + bias` over the labelled rows, computing only those.

    Args:
        hidden: `(T, E)`, any floating dtype: what the decoder reads.
        labels: int64 `(T,)`: a token id, or `ignore_index` where the row has no label.
        weight: `(V, E)`; bias: `(V,)` or None.
        ignore_index: the label of a row that does not count.
        max_labelled: at least the number of labelled rows, where the caller knows one: a GPU then need not tell the
            host how many there are, and computes that many. Labelled rows beyond it are left out (an error on the
            CPU).
        backend: one of `ops.backends("masked_lm_loss")`; default: the best that takes these tensors.

    Returns:
        A scalar in float32 (float64 for float64 inputs); 0, with zero gradients, when no row is labelled.

    Raises:
        ValueError: shapes or devices do not fit together, or more rows than `max_labelled` have labels (on the CPU).
        IndexError: a label is outside the vocabulary (on the CPU).
        TypeError: labels are not int64.
        BackendUnavailableError: the backend that was asked for cannot run this call.
    """
    if weight.dim() != 2:
        raise ValueError(f"{_OP}: weight has shape {tuple(weight.shape)}, expected (vocabulary, hidden size)")
    vocabulary, size = weight.shape
    check_shape(_OP, "hidden", hidden, (None, size), f"(tokens, {size}) to fit weight")
    check_shape(_OP, "labels", labels, (hidden.shape[0],), "one label a row of hidden")
    if labels.dtype != torch.int64:
        raise TypeError(f"{_OP}: labels are {labels.dtype}, expected torch.int64")
    if bias is not None:
        check_shape(_OP, "bias", bias, (vocabulary,), f"({vocabulary},) to fit weight")
    check_same_device(_OP, hidden=hidden, labels=labels, weight=weight, bias=bias)
    if max_labelled is not None and labels.device.type == "cpu" and not torch.compiler.is_compiling():
        labelled = int((labels != ignore_index).sum())
        if labelled > max_labelled:
            raise ValueError(f"{_OP}: {labelled} rows are labelled, more than max_labelled ({max_labelled})")
    run = choose(_OP, backend, hidden, labels, weight, bias, size=hidden.shape[0])
    return run(hidden, labels, weight, bias, ignore_index=ignore_index, max_labelled=max_labelled)


def _run_compiled(
    compiled: Callable[..., tuple[Tensor, Tensor]],
    backend: Backend,
    hidden: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    ignore_index: int,
    max_labelled: int | None,
) -> Tensor:
    labelled = labels != ignore_index
    if max_labelled is None:
        rows = labelled.nonzero().squeeze(1)
    else:
        rows = torch.nonzero_static(labelled, size=max_labelled, fill_value=-1).squeeze(1)
    (hidden, weight, bias), bfloat16 = factors(backend, hidden, weight, bias)
    return compiled(hidden, labels, rows, weight, bias, bfloat16)[0]


def _shapes(backend: Backend) -> Halves:
    def forward(inputs: MaskedLmLossInputs) -> MaskedLmLossResults:
        hidden, pitch = inputs.hidden, backend.logits_pitch
        columns = -(-inputs.weight.shape[0] // pitch) * pitch
        logits = hidden.new_empty((inputs.rows.shape[0], columns))
        return MaskedLmLossResults(hidden.new_empty((), dtype=torch.float32), logits)

    def backward(grad_loss: Tensor, saved: MaskedLmLossSaved) -> MaskedLmLossGrads:
        hidden, weight = saved.hidden, saved.weight
        sizes = (hidden.shape, weight.shape, (weight.shape[0],))
        return MaskedLmLossGrads(*(hidden.new_empty(size) for size in sizes))

    return Halves(forward, backward)


def _flops(products: int, own: MaskedLmLossInputs | MaskedLmLossSaved) -> int:
    """Of so many products of the size of the decoder's."""
    return 2 * products * own.rows.shape[0] * own.weight.numel()


declare(
    _OP,
    Arguments(MaskedLmLossInputs, MaskedLmLossResults, MaskedLmLossSaved, MaskedLmLossGrads),
    reference=reference.masked_lm_loss,
    run=_run_compiled,
    shapes=_shapes,
    flops=Halves(partial(_flops, 1), partial(_flops, 2)),
)
