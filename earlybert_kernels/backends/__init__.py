"""Thin callers of what runs the ops: the two compiled extensions, and Triton.

Each is a package here that says of itself, as `BACKEND`, what it is called, where it runs and when it cannot; adding
one is adding such a package.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .backend import Backend

#: The activations of csrc/common/activation.h by their numbers: none, and `reference.feed_forward.ACTIVATIONS`.
ACTIVATIONS = ("none", "gelu", "gelu_tanh", "relu")
#: What a machine without a GPU is taken for.
DEFAULT_ARCHITECTURE = 90


@cache
def backends() -> dict[str, Backend]:
    """Every backend by its name, in the order of their ranks."""
    names = (each.name for each in pkgutil.iter_modules(__path__) if each.ispkg)
    stated = (getattr(importlib.import_module(f"{__name__}.{name}"), "BACKEND", None) for name in names)
    return {each.name: each for each in sorted(filter(None, stated), key=lambda each: each.rank)}


def backends_with(module: str) -> list[Backend]:
    """Those with a module of that name, in which an op's kernels are."""
    return [backend for backend in backends().values() if backend.has(module)]


def _record_name(suffix: str) -> str:
    """As setup.py's RECORD: what builds the modules of one Python records them apart."""
    return f"_build{suffix.removesuffix('.so')}.json"


@cache
def build_record() -> dict:
    """What setup.py built for this Python, how, and why not the rest; empty when it never did in this tree."""
    try:
        name = _record_name(sysconfig.get_config_var("EXT_SUFFIX"))
        return json.loads((Path(__file__).parents[1] / name).read_text())
    except FileNotFoundError:
        return {}


def _built_for() -> list[str]:
    """The versions of Python that setup.py has built for in this tree."""
    records = Path(__file__).parents[1].glob(_record_name(".*.so"))
    return sorted(json.loads(record.read_text())["python"] for record in records)


def load_extension(name: str) -> tuple[Any, str | None]:
    """Extension `earlybert_kernels.<name>`, or None and why there is none, as far as the build recorded it."""
    try:
        return importlib.import_module(f"earlybert_kernels.{name}"), None
    except ModuleNotFoundError:
        reason = build_record().get(name, {}).get("reason")
        if reason is None:
            others = ", ".join(_built_for())
            reason = f"it was built for Python {others}" if others else "this source tree was never built"
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
