"""What a run was done with, for the record beside its numbers."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import earlybert_kernels
from earlybert_kernels.env import cpu_name

from . import processes


def versions() -> dict[str, str]:
    """Versions of everything that a result may depend on."""
    found = {"python": platform.python_version(), "earlybert-kernels": earlybert_kernels.__version__}
    for name in ("torch", "triton", "transformers", "tokenizers"):
        with contextlib.suppress(PackageNotFoundError):  # there is no Triton but for Linux
            found[name] = version(name)
    return found


def commit() -> str | None:
    """`git describe --always --dirty` of the checkout that this package is run from; None if it is from none."""
    root = Path(__file__).parents[2]  # an installed package may lie in a checkout, but in one of something else
    if not (root / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """The processor, how many threads torch uses, the GPU with its architecture where the run used one, and how many
    processes have one each, or share the processor, if they are several.
    """
    machine: dict[str, str | int] = {"cpu": cpu_name(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
        machine["architecture"] = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    if processes.count() > 1:
        machine["processes"] = processes.count()
    return machine
