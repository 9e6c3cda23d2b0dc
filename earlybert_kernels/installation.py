"""Which copy of the package this is."""

from __future__ import annotations

import warnings
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

_NAME = "earlybert-kernels"
_HERE = Path(__file__).resolve().parent


def version() -> str:
    """The installed version; "unknown" in a source tree that is not installed."""
    try:
        return distribution(_NAME).version
    except PackageNotFoundError:
        return "unknown"


def warn_if_shadowing() -> None:
    """Warns where a source tree without extensions hides an installation, as Python does that is started in a clone."""
    if _is_built(_HERE):
        return
    # All of that name: what builds in a clone leaves metadata there, which are found before those of the installation.
    for found in distributions(name=_NAME):
        installed = Path(str(found.locate_file("earlybert_kernels"))).resolve()
        if installed != _HERE and _is_built(installed):
            warnings.warn(
                f"earlybert_kernels was imported from {_HERE}, a source tree that was never built, and hides the "
                f"installation in {installed}: everything runs in plain PyTorch. Start Python in another folder, or "
                "build the tree with pip install -e .",
                stacklevel=3,
            )
            return


def _is_built(package: Path) -> bool:
    return any(package.glob("_c*.so"))
