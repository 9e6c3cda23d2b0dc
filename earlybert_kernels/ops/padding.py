"""Dropping a batch's padding and putting it back, for several tensors in one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ..backends import cuda
from .checks import check_indices, check_same_device
from .custom import Backend, Halves, define
from .dispatch import choose, register


def unpad(tensors: Sequence[Tensor], index: Tensor, *, backend: str | None = None) -> tuple[Tensor, ...]:
    """The real tokens of padded tensors, one behind the other. `pad` is its gradient.

    Args:
        tensors: each `(B, S, ...)`, of any dtype: ids, hidden states.
        index: int64 `(T,)`: the place of each real token in the flattened batch, b * S + s, each more than the one
            before.
        backend: one of `ops.backends("unpad")`; default: the best that takes these tensors. Plain PyTorch
            stands in for one that `use_backend` asks for and that has no kernel of its own.

    Returns:
        For each tensor `(T, ...)`.

    Raises:
        ValueError: shapes or devices do not fit together, or (on the CPU) the places do not rise, or are not the
            batch's.
        TypeError: `index` is not int64.
        RuntimeError: the backend that was asked for cannot run this call.
    """
    if not tensors:
        return ()
    for tensor in tensors:
        if tensor.dim() < 2 or tensor.shape[:2] != tensors[0].shape[:2]:
            raise ValueError(
                f"unpad: a tensor has shape {tuple(tensor.shape)}, expected (B, S, ...) with B and S as the first, "
                f"{tuple(tensors[0].shape)}"
            )
    batch, seq = tensors[0].shape[:2]
    check_indices("unpad", "index", index, index.numel())
    _check_places("unpad", index, batch * seq)
    check_same_device("unpad", index=index, **{f"tensors[{i}]": t for i, t in enumerate(tensors)})
    run = choose("unpad", backend, *tensors, index, size=index.numel())
    return tuple(run(list(tensors), index, batch, seq))


def pad(
    tensors: Sequence[Tensor], index: Tensor, batch: int, seq: int, *, backend: str | None = None
) -> tuple[Tensor, ...]:
    """Packed tensors as a padded batch, with zeros where there is no token. `unpad` is its gradient.

    Args:
        tensors: each `(T, ...)`, of any dtype.
        index: int64 `(T,)`, as in `unpad`.
        batch, seq: B and S.
        backend: one of `ops.backends("pad")`, as in `unpad`.

    Returns:
        For each tensor `(B, S, ...)`.

    Raises:
        ValueError, TypeError, RuntimeError: as `unpad`.
    """
    if not tensors:
        return ()
    for tensor in tensors:
        if tensor.dim() < 1 or tensor.shape[0] != index.numel():
            raise ValueError(f"pad: a tensor has shape {tuple(tensor.shape)}, expected (T, ...), a row for each place")
    check_indices("pad", "index", index, index.numel())
    _check_places("pad", index, batch * seq)
    check_same_device("pad", index=index, **{f"tensors[{i}]": t for i, t in enumerate(tensors)})
    run = choose("pad", backend, *tensors, index, size=index.numel())
    return tuple(run(list(tensors), index, batch, seq))


def _check_places(op: str, index: Tensor, places: int) -> None:
    # Values are read on the CPU only: elsewhere that would make the host wait for the device.
    if index.device.type != "cpu" or torch.compiler.is_compiling() or not index.numel():
        return
    if index[0] < 0 or index[-1] >= places or not (index[1:] > index[:-1]).all():
        raise ValueError(f"{op}: index has to rise from one entry to the next, from 0 or more to at most {places - 1}")


# The dispatcher's side. Both ops take tensors, index, batch and seq, and either is the other's gradient.


def _unpad_shapes(tensors, index, batch, seq):
    return [t.new_empty(index.shape[0], *t.shape[2:]) for t in tensors]


def _pad_shapes(tensors, index, batch, seq):
    return [t.new_empty(batch, seq, *t.shape[1:]) for t in tensors]


def _save(ctx, inputs, output):
    tensors, index, ctx.batch, ctx.seq = inputs
    ctx.count = len(tensors)
    ctx.save_for_backward(index)


def _gradients(ctx, backward, grads):
    (index,) = ctx.saved_tensors
    there = [i for i, grad in enumerate(grads) if grad is not None]
    results: list[Tensor | None] = [None] * ctx.count
    if there:
        for i, grad in zip(there, backward([grads[i] for i in there], index, ctx.batch, ctx.seq), strict=True):
            results[i] = grad
    return results, None, None, None


def _reference_unpad(tensors, index, batch, seq):
    return reference.unpad(tensors, index)


_SCHEMA = "(Tensor[] tensors, Tensor index, SymInt batch, SymInt seq) -> Tensor[]"
_unpad = Backend(Halves(cuda.padding.unpad, cuda.padding.pad), Halves(_unpad_shapes, _pad_shapes))
_pad = Backend(Halves(cuda.padding.pad, cuda.padding.unpad), Halves(_pad_shapes, _unpad_shapes))
for _op, _cuda, _reference in (("unpad", _unpad, _reference_unpad), ("pad", _pad, reference.pad)):
    _run = define(_op, (_SCHEMA, _SCHEMA), backends={"cuda": _cuda}, save=_save, gradients=_gradients)
    register(_op, "reference", _reference, stands_in=True)
    register(_op, "cuda", _run["cuda"], **cuda.AVAILABILITY | {"refuses": cuda.padding.refuses})
