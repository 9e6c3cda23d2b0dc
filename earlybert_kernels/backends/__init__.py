"""Thin callers of what runs the ops: the two compiled extensions, and Triton."""

from __future__ import annotations

import importlib
import json
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

#: The activations of csrc/common/activation.h by their numbers: none, and `reference.feed_forward.ACTIVATIONS`.
ACTIVATIONS = ("none", "gelu", "gelu_tanh", "relu")
#: What a machine without a GPU is taken for.
DEFAULT_ARCHITECTURE = 90


@cache
def build_record() -> dict:
    """What setup.py built, how, and why not the rest; empty when it never ran in this tree."""
    try:
        return json.loads((Path(__file__).parents[1] / "_build.json").read_text())
    except FileNotFoundError:
        return {}


def load_extension(name: str) -> tuple[ModuleType | None, str | None]:
    """Extension `earlybert_kernels.<name>`, or why there is none, as far as the build recorded it."""
    try:
        return importlib.import_module(f"earlybert_kernels.{name}"), None
    except ModuleNotFoundError:
        record = build_record()
        reason = record.get(name, {}).get("reason")
        if reason is None:
            reason = f"it was built for Python {record['python']}" if record else "this source tree was never built"
        return None, f"earlybert_kernels.{name} is not built ({reason})"
    except ImportError as error:
        return None, f"earlybert_kernels.{name} cannot be loaded ({error})"


@cache
def architecture_of(device: int) -> int:
    """Ten times the compute capability of the GPU of that index."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def nearest(architectures: dict[str, Any], architecture: int) -> Any:
    """What a shipped table has for an architecture: its own, else the next lower one's, else the lowest one's."""
    known = sorted(map(int, architectures))
    return architectures[str(max((each for each in known if each <= architecture), default=known[0]))]


def address(tensor: Tensor | None) -> int:
    """Where a tensor's data are, 0 for none: what the extensions take."""
    return 0 if tensor is None else tensor.data_ptr()
