"""What a result is kept together with: device, machine, versions, commit."""

from __future__ import annotations

import os
from typing import Any

import torch

from earlybert import environment


def pick_device() -> torch.device:
    """The GPU where torch sees one (CUDA_VISIBLE_DEVICES= hides it), else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait_for(device: torch.device) -> None:
    """Returns when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def commit() -> str:
    """What `environment.commit` says of this checkout; outside of one, what EARLYBERT_COMMIT says, or "unknown"."""
    return environment.commit() or os.environ.get("EARLYBERT_COMMIT", "unknown")


def provenance(device: torch.device) -> dict[str, Any]:
    """Entries `device`, `machine`, `versions` and `commit` of a result's JSON."""
    return {
        "device": device.type,
        "machine": environment.describe_machine(device),
        "versions": environment.versions(),
        "commit": commit(),
    }
