"""What a result is kept together with: device, machine, versions, commit."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import torch

from earlybert.environment import describe_machine, versions


def pick_device() -> torch.device:
    """The GPU where torch sees one (CUDA_VISIBLE_DEVICES= hides it), else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait_for(device: torch.device) -> None:
    """Returns when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def commit() -> str:
    """`git describe --always --dirty` of this checkout; outside of one, what EARLYBERT_COMMIT says, or "unknown"."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("EARLYBERT_COMMIT", "unknown")
    return done.stdout.strip()


def provenance(device: torch.device) -> dict[str, Any]:
    """Entries `device`, `machine`, `versions` and `commit` of a result's JSON."""
    return {
        "device": device.type,
        "machine": describe_machine(device),
        "versions": versions(),
        "commit": commit(),
    }
