"""The Triton backend: one module an op, tensors in, tensors out, on torch's current stream.

It takes CUDA tensors, and those on the CPU where Triton's interpreter is on (`TRITON_INTERPRET=1`), which proves the
kernels' arithmetic without a GPU.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch
from torch import Tensor

from ..backend import Backend

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


def _refuses_optimizer_step(*tensors: Tensor) -> str | None:
    moments = {tensor.dtype for tensor in tensors[len(tensors) // 2 :]}
    if moments != {torch.float32}:
        return f"it takes moments in float32, got {', '.join(map(str, moments))}"
    return refuses(*tensors)


BACKEND = Backend(
    name="triton",
    rank=1,
    devices=("cuda",),
    emulated=INTERPRETED,
    unavailable=unavailable,
    refuses=refuses,
    refusals={"optimizer_step": _refuses_optimizer_step},
    joins_projections=True,
    logits_pitch=64,
)
