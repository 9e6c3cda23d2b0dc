"""Masked-language-model loss on the labelled rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .. import reference
from ..backends import cpu, triton
from .autocast import autocast
from .checks import check_same_device, check_shape
from .custom import Backend, Halves, define
from .dispatch import choose, register

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
        RuntimeError: the backend that was asked for cannot run this call.
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
    hidden, weight, bias = autocast(hidden, weight, bias)
    return compiled(hidden, labels, rows, weight, bias)[0]


# The dispatcher's side; `rows` are the labelled ones, and after them any number of -1.


def _forward_shapes(pitch, hidden, labels, rows, weight, bias):
    columns = -(-weight.shape[0] // pitch) * pitch  # of a row of logits in memory
    return hidden.new_empty((), dtype=torch.float32), hidden.new_empty((rows.shape[0], columns))


def _backward_shapes(grad_loss, grad_logits, hidden, rows, weight):
    return tuple(hidden.new_empty(size) for size in (hidden.shape, weight.shape, (weight.shape[0],)))


def _forward_flops(hidden, labels, rows, weight, bias, out_val=None):
    return 2 * rows.shape[0] * weight.numel()


def _backward_flops(grad_loss, grad_logits, hidden, rows, weight, out_val=None):
    return 4 * rows.shape[0] * weight.numel()


def _save(ctx, inputs, output):
    hidden, _, rows, weight, bias = inputs
    ctx.has_bias = bias is not None
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], hidden, rows, weight)


def _gradients(ctx, backward, grad_loss, grad_grad_logits):
    arguments = (grad_loss, *ctx.saved_tensors)
    grad_hidden, grad_weight, grad_bias = backward(*arguments)
    return grad_hidden, None, None, grad_weight, grad_bias if ctx.has_bias else None


def _shapes(pitch: int) -> Halves:
    return Halves(partial(_forward_shapes, pitch), _backward_shapes)


_compiled = define(
    _OP,
    (
        "(Tensor hidden, Tensor labels, Tensor rows, Tensor weight, Tensor? bias) -> (Tensor loss, Tensor grad_logits)",
        "(Tensor grad_loss, Tensor grad_logits, Tensor hidden, Tensor rows, Tensor weight)"
        " -> (Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)",
    ),
    backends={
        "cpu": Backend(Halves(cpu.masked_lm_loss.forward, cpu.masked_lm_loss.backward), _shapes(1)),
        "triton": Backend(Halves(*triton.kernels(_OP)), _shapes(64)),
    },
    save=_save,
    gradients=_gradients,
    flops=Halves(_forward_flops, _backward_flops),
)


_run = {backend: partial(_run_compiled, compiled) for backend, compiled in _compiled.items()}
register(_OP, "reference", reference.masked_lm_loss)
register(_OP, "cpu", _run["cpu"], unavailable=cpu.unavailable, refuses=cpu.refuses_products)
register(_OP, "triton", _run["triton"], **triton.AVAILABILITY)
