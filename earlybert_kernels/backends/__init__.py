"""Thin callers of what runs the ops: the two compiled extensions and the Triton kernels."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path


@cache
def build_record() -> dict:
    """What setup.py built, how, and why not the rest; empty when it never ran in this tree."""
    try:
        return json.loads((Path(__file__).parents[1] / "_build.json").read_text())
    except FileNotFoundError:
        return {}


def why_not_built(module: str) -> str:
    """Why extension `module` (`"_cpu"` or `"_cuda"`) is missing, as far as the build recorded it."""
    reason = build_record().get(module, {}).get("reason", "this source tree was never built")
    return f"earlybert_kernels.{module} is not built ({reason})"
