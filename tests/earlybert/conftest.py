"""A BERT of toy size and a toy SST-2, so that whole runs take a second."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from toy import FILLERS, HEADS, HIDDEN, LAYERS, NEURONS, WORDS, sentence
from transformers import BertConfig, BertModel, BertTokenizer

from earlybert import FinetuneArguments


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a randomly initialised BERT of 3 layers, 4 heads and 48 neurons, and a tokenizer."""
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


@pytest.fixture
def arguments(tiny_bert: str, toy_sst2: str, tmp_path: Path) -> Callable[..., FinetuneArguments]:
    """Makes the arguments of a short run: 8 optimizer steps of search at most, 12 of training."""

    def make(**changes: object) -> FinetuneArguments:
        defaults = {
            "model": tiny_bert,
            "task": "sst2",
            "data_dir": toy_sst2,
            "output_dir": str(tmp_path / "run"),
            "batch_size": 8,
            "max_length": 16,
            "max_steps": 12,
            "search_steps": 8,
            "early_bird_interval": 2,
            "learning_rate": 5e-3,
            "search_learning_rate": 5e-3,
            "head_ratio": 0.25,
            "device": "cpu",
        }
        return FinetuneArguments(**{**defaults, **changes})

    return make
