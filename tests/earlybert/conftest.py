"""The arguments of short runs on toy models and data."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import earlybert_kernels as ek
from earlybert import FinetuneArguments, finetune
from earlybert.cli import main
from earlybert.programs import plots, searching
from earlybert.tasks import TASKS
from earlybert.training.data import EncodedExamples
from tests.helpers.toy import FILLERS, WORDS


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests tokenise is not kept among what users have tokenised."""
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their files are empty where a test does not ask for `pictures`: to draw them takes half of a short run."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(plots, "_save", lambda figure, path: path.write_bytes(b""))


@pytest.fixture
def pictures() -> None:
    """Pictures are drawn."""


@pytest.fixture
def no_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that comes to loading its model fails the test."""
    monkeypatch.setattr(searching, "load_model", lambda *args, **options: pytest.fail("a model was loaded"))


@pytest.fixture(scope="session")
def toy_texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A text file whose documents repeat one word, which can so be guessed."""
    generator = random.Random(0)
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    lines = []
    for number in range(200):
        word = generator.choice([*WORDS[number % 2], *FILLERS])
        lines.append(" ".join([word] * generator.randint(6, 40)))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


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


@pytest.fixture(scope="session")
def _runs() -> dict[str, Path]:
    """The folders of the runs that `finished` has copied, by what their arguments change."""
    return {}


@pytest.fixture
def finished(
    arguments: Callable[..., FinetuneArguments], tmp_path_factory: pytest.TempPathFactory, _runs: dict[str, Path]
) -> Callable[..., FinetuneArguments]:
    """Makes the arguments of a short run that has ended in their folder: a copy of one that all tests share."""

    def make(**changes: object) -> FinetuneArguments:
        key = repr(sorted(changes.items()))
        if key not in _runs:
            _runs[key] = tmp_path_factory.mktemp("finished") / "run"
            finetune(arguments(**changes, output_dir=str(_runs[key])))
        args = arguments(**changes)
        shutil.copytree(_runs[key], args.output_dir)
        return args

    return make


@pytest.fixture(scope="session")
def flags(tiny_bert: str, toy_sst2: str) -> list[str]:
    return [
        *("--model", tiny_bert, "--task", "sst2", "--data-dir", toy_sst2, "--device", "cpu"),
        *("--max-length", "16", "--batch-size", "8", "--max-steps", "4", "--search-steps", "4"),
        *("--early-bird-interval", "2", "--head-ratio", "0.25"),
    ]


@pytest.fixture(scope="session")
def run(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; do not write to it."""
    out = tmp_path_factory.mktemp("cli") / "run"
    assert main(["finetune", *flags, "--output-dir", str(out)]) == 0
    return out


@pytest.fixture
def own_run(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture(scope="session")
def examples(tiny_bert: str, toy_sst2: str) -> EncodedExamples:
    """What a loop is trained on."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    train = TASKS["sst2"].read(Path(toy_sst2) / "train.tsv")
    return TASKS["sst2"].encode(tokenizer, train, 16)


@pytest.fixture
def model(tiny_bert: str) -> nn.Module:
    """What a loop trains: without dropout, so that runs can be compared; with gates."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_bert, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    return ek.enable_gates(model)
