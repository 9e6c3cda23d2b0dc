"""The Triton backend: one module an op, tensors in, tensors out, on torch's current stream.

It takes CUDA tensors, and those on the CPU where Triton's interpreter is on (`TRITON_INTERPRET=1`), which proves the
kernels' arithmetic without a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Whether kernels run on the CPU, one program after the other. Triton reads this when a kernel is defined.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")

missing = "the package triton is not installed" if importlib.util.find_spec("triton") is None else None


@cache
def unavailable() -> str | None:
    """Why no op can run on this backend in this process, or None."""
    if missing is not None:
        return missing
    if INTERPRETED or torch.cuda.is_available():
        return None
    return "torch sees no CUDA GPU, and TRITON_INTERPRET=1 is not set"


def refuses(*tensors: Tensor | None, **facts: int) -> str | None:
    """Why these tensors cannot be taken (device, dtype), or None."""
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != "cuda" and not (INTERPRETED and tensor.device.type == "cpu"):
            return f"it takes CUDA tensors, got one on {tensor.device}"
        if tensor.is_floating_point() and tensor.dtype not in DTYPES:
            return f"it takes float32, float16 and bfloat16 tensors, got {tensor.dtype}"
    return None


#: How `ops.dispatch.register` is told of this backend. The interpreter is far too slow to be chosen unasked.
AVAILABILITY = {"unavailable": unavailable, "refuses": refuses, "on_demand": INTERPRETED}


def kernel(op: str, name: str) -> Callable:
    """Function `name` of this package's module `op`, which is imported when it is first called: it needs Triton."""

    def call(*arguments, **options):
        return getattr(importlib.import_module(f"{__name__}.{op}"), name)(*arguments, **options)

    return call


def kernels(op: str) -> tuple[Callable, Callable]:
    """The functions `forward` and `backward` of module `op`, as `kernel`."""
    return kernel(op, "forward"), kernel(op, "backward")
