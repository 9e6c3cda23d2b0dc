"""What `inspect` compiles: every op called at the shapes and dtypes of real BERTs, on tensors without data.

The kernels' configurations stand where they are launched, and nowhere else: what these calls would launch is recorded.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .launch import Launch, recording

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

#: By op: calls that between them use every configuration.
WORKLOADS: dict[str, Callable[[], None]] = {}


def launches(op: str, architecture: int) -> list[Launch]:
    """What the workload of an op would launch on an architecture."""
    with recording(architecture) as recorded:
        WORKLOADS[op]()
    return recorded


def _workload(calls: Callable[[], None]) -> Callable[[], None]:
    WORKLOADS[calls.__name__] = calls
    return calls


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@_workload
def lamb_step() -> None:
    """Weights and biases; gates, which are neither adapted nor free of a penalty."""
    from .lamb_step import lamb_step

    for dtype in DTYPES:
        for adapt, l1 in ((True, 0.0), (False, 0.0), (False, 1e-4)):
            params, grads = ([_empty(3072, 768, dtype=dtype), _empty(768, dtype=dtype)] for _ in range(2))
            moments = [[_empty(3072, 768), _empty(768)] for _ in range(2)]
            options = {"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01}
            lamb_step(params, grads, *moments, [_empty(), _empty()], lr=_empty(), adapt=adapt, l1=l1, **options)
