"""How every kernel of this package is launched, and how a launch is looked at without a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import DEFAULT_ARCHITECTURE, architecture_of
from . import INTERPRETED


class Launch(NamedTuple):
    """One launch of a kernel, as `launch` was asked for it.

    Attributes:
        kernel: the jitted function.
        grid: programs along each axis.
        arguments: of the kernel that are no constants, by name: tensors, None, ints and floats.
        constants: the kernel's `tl.constexpr` arguments, by name.
        num_warps, num_stages: what the compiler is told.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int


# While a recording is on: the architecture it is for, and the launches so far.
_recording: tuple[int, list[Launch]] | None = None


@contextlib.contextmanager
def recording(architecture: int) -> Iterator[list[Launch]]:
    """Within the context no kernel runs: the list collects what would have been launched on `architecture`.

    Ops are then called on tensors of the device "meta", which have shapes and dtypes and no data.

    Args:
        architecture: ten times the compute capability: 80, 90, 100.
    """
    global _recording
    before, _recording = _recording, (architecture, [])
    try:
        yield _recording[1]
    finally:
        _recording = before


def architecture(tensor: Tensor) -> int:
    """Ten times the compute capability of the tensor's GPU; without one what is recorded for, or the default."""
    if _recording is not None:
        return _recording[0]
    return architecture_of(tensor.get_device()) if tensor.is_cuda else DEFAULT_ARCHITECTURE


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int = 4, num_stages: int = 1, **constants: Any
) -> None:
    """Runs `kernel` on the device of its first argument, a tensor; a grid without programs launches nothing.

    Args:
        kernel: a `triton.jit` function.
        grid: programs along each axis.
        arguments: its arguments that are no constants, in order.
        num_warps, num_stages: what the compiler is told.
        constants: its `tl.constexpr` arguments, by name.
    """
    if 0 in grid:
        return
    if _recording is not None:
        names = [name for name in kernel.arg_names if name not in constants]
        named = dict(zip(names, arguments, strict=True))
        _recording[1].append(Launch(kernel, grid, named, constants, num_warps, num_stages))
        return
    # Triton launches on torch's current device, wherever the tensors are.
    here = contextlib.nullcontext() if INTERPRETED else torch.cuda.device_of(arguments[0])
    with here:
        kernel[grid](*arguments, num_warps=num_warps, num_stages=num_stages, **constants)
