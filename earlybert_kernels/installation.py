"""Which copy of the package this is."""

from __future__ import annotations

import warnings
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def version() -> str:
    """The installed version; "unknown" in a source tree that is not installed."""
    try:
        return distribution("earlybert-kernels").version
    except PackageNotFoundError:
        return "unknown"


def warn_if_shadowing() -> None:
    """Warns where a source tree without extensions hides an installation, as Python does that is started in a clone."""
    try:
        installed = Path(str(distribution("earlybert-kernels").locate_file("earlybert_kernels"))).resolve()
    except PackageNotFoundError:
        return
    if installed != _HERE and installed.is_dir() and not any(_HERE.glob("_c*.so")) and any(installed.glob("_c*.so")):
        warnings.warn(
            f"earlybert_kernels was imported from {_HERE}, a source tree that was never built, and hides the "
            f"installation in {installed}: everything runs in plain PyTorch. Start Python in another folder, or build "
            "the tree with pip install -e .",
            stacklevel=3,
        )
