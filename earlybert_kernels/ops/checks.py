"""Argument checks that several ops share. Each raises an error that says what was given and what is wanted."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def check_shape(op: str, name: str, tensor: Tensor, shape: tuple[int | None, ...], meaning: str) -> None:
    """Raises ValueError unless `tensor` has `shape`; None stands for any size."""
    given = tuple(tensor.shape)
    if len(given) != len(shape) or any(w is not None and w != g for w, g in zip(shape, given, strict=True)):
        raise ValueError(f"{op}: {name} has shape {given}, expected {meaning}")


def check_same_device(op: str, **tensors: Tensor | None) -> None:
    """Raises ValueError unless all tensors are on one device."""
    devices = {name: t.device for name, t in tensors.items() if t is not None}
    if len(set(devices.values())) > 1:
        raise ValueError(f"{op}: all tensors must be on one device, got {devices}")


def check_mask(op: str, name: str, mask: Tensor | None, units: int) -> None:
    """Raises unless `mask` is None or bool `(units,)`."""
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f"{op}: {name} is {mask.dtype}, expected torch.bool (True = computed)")
    check_shape(op, name, mask, (units,), f"({units},), one entry a unit")


def check_active(op: str, name: str, active: Tensor | None, units: int) -> None:
    """Raises unless `active` is None, bool `(units,)` or one-dimensional int64."""
    if active is None:
        return
    if active.dtype == torch.bool:
        check_mask(op, name, active, units)
    elif active.dtype == torch.int64:
        check_shape(op, name, active, (None,), "one dimension")
    else:
        raise TypeError(f"{op}: {name} is {active.dtype}, expected torch.int64 (indices) or torch.bool (a mask)")


def check_indices(op: str, name: str, indices: Tensor, count: int) -> None:
    """Raises unless `indices` is int64 `(count,)`; what they point to, the backends check."""
    if indices.dtype != torch.int64:
        raise TypeError(f"{op}: {name} is {indices.dtype}, expected torch.int64")
    # No number in the message: to write one, a compiler would make the count a constant of its graph.
    check_shape(op, name, indices, (count,), "one index a row")


def check_offsets(op: str, name: str, offsets: Tensor, tokens: int, longest: int, least: int = 0) -> None:
    """Raises unless `offsets` cuts `tokens` rows into sequences of `least` to `longest` tokens."""
    if offsets.dtype != torch.int32:
        raise TypeError(f"{op}: {name} is {offsets.dtype}, expected torch.int32")
    if offsets.dim() != 1 or offsets.numel() < 1:
        raise ValueError(f"{op}: {name} has shape {tuple(offsets.shape)}, expected (sequences + 1,)")
    # Values are read on the CPU only: elsewhere that would make the host wait for the device.
    if offsets.device.type == "cpu" and not torch.compiler.is_compiling():
        values = offsets.tolist()
        if values[0] != 0 or values[-1] != tokens:
            raise ValueError(f"{op}: {name} runs from {values[0]} to {values[-1]}, expected 0 to {tokens} tokens")
        lengths = [end - begin for begin, end in itertools.pairwise(values)]
        if lengths and (min(lengths) < least or max(lengths) > longest):
            raise ValueError(
                f"{op}: {name} has sequences of {min(lengths)} to {max(lengths)} tokens, expected {least} to the "
                f"longest that was given, {longest}"
            )


def check_gates(op: str, name: str, gates: Tensor | None, units: int) -> None:
    """Raises unless `gates` is None or float32/float64 `(units,)`.

    Half-precision gates are refused: at the paper's rate a step moves a gate by 2e-5, while near 1 the
    spacing of bfloat16 is 4e-3 and of float16 5e-4, so such a gate would never move.
    """
    if gates is None:
        return
    if gates.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{op}: {name} is {gates.dtype}; gates must stay float32, because a step of 2e-5 is lost in half "
            f"precision near 1. Keep them out of .half()/.bfloat16() and use autocast instead."
        )
    check_shape(op, name, gates, (units,), f"({units},), one entry a unit")


def check_probability(op: str, name: str, p: float) -> None:
    """Raises ValueError unless 0 <= p < 1."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"{op}: {name} is {p}, expected a probability in [0, 1)")
