"""What the tests of compiled backends run on."""

from __future__ import annotations

from typing import NamedTuple

import torch

import earlybert_kernels as ek


class Target(NamedTuple):
    """A compiled backend, and the device that its tensors are on."""

    backend: str
    device: str


def device_of(backend: str) -> str:
    """Where a backend's tensors are: Triton's interpreter and the emulator of CUDA take those on the CPU."""
    return "cuda" if backend in ("cuda", "triton") and torch.cuda.is_available() else "cpu"


def targets_of(op: str) -> list[Target]:
    """Every backend that can run the op here, plain PyTorch among them."""
    return [Target(backend, device_of(backend)) for backend in ek.ops.backends(op)]
