"""Dropping a batch's padding and putting it back, for several tensors in one pass over memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..backends import backends_with
from .checks import check_indices, check_same_device
from .custom import Halves, Kernels, define
from .dispatch import choose, register, register_reference


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
        BackendUnavailableError: the backend that was asked for cannot run this call.
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


def _unpad_shapes(tensors: list[Tensor], index: Tensor, batch: int, seq: int) -> list[Tensor]:
    return [t.new_empty(index.shape[0], *t.shape[2:]) for t in tensors]


def _pad_shapes(tensors: list[Tensor], index: Tensor, batch: int, seq: int) -> list[Tensor]:
    return [t.new_empty(batch, seq, *t.shape[1:]) for t in tensors]


def _save(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    tensors, index, ctx.batch, ctx.seq = inputs
    ctx.count = len(tensors)
    ctx.save_for_backward(index)


def _gradients(ctx: Any, backward: Callable, grads: list[Tensor | None]) -> tuple:
    (index,) = ctx.saved_tensors
    there = [i for i, grad in enumerate(grads) if grad is not None]
    results: list[Tensor | None] = [None] * ctx.count
    if there:
        for i, grad in zip(there, backward([grads[i] for i in there], index, ctx.batch, ctx.seq), strict=True):
            results[i] = grad
    return results, None, None, None


def _reference_unpad(tensors: list[Tensor], index: Tensor, batch: int, seq: int) -> tuple[Tensor, ...]:
    return reference.unpad(tensors, index)


_SCHEMA = torch.library.infer_schema(_unpad_shapes, mutates_args=())
_implementing = backends_with("padding")
for _op, _other, _shapes, _reference in (
    ("unpad", "pad", Halves(_unpad_shapes, _pad_shapes), _reference_unpad),
    ("pad", "unpad", Halves(_pad_shapes, _unpad_shapes), reference.pad),
):
    _kernels = {
        backend.name: Kernels(Halves(backend.function("padding", _op), backend.function("padding", _other)), _shapes)
        for backend in _implementing
    }
    _compiled = define(_op, (_SCHEMA, _SCHEMA), kernels=_kernels, save=_save, gradients=_gradients)
    register_reference(_op, _reference, stands_in=True)
    for _backend in _implementing:
        register(_op, _backend, _compiled[_backend.name])
