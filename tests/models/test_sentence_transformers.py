"""Sentence encoders of sentence-transformers: the kernels inside, and the ticket."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import earlybert_kernels as ek
from tests.helpers.tiny_bert import some_ticket

sentence_transformers = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
pytest.importorskip("accelerate", reason="its trainer needs accelerate")

TEXTS = ["good film", "a dull and slow film that nobody needs", "fine", "the film is good and the music better"]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def encoder(folder: str) -> nn.Module:
    """With mean pooling, and without dropout."""
    modules = sentence_transformers.sentence_transformer.modules
    words = modules.Transformer(folder)
    pooling = modules.Pooling(words.get_embedding_dimension())
    model = sentence_transformers.SentenceTransformer(modules=[words, pooling], device="cpu")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def embeddings(model: nn.Module) -> torch.Tensor:
    return torch.as_tensor(model.encode(TEXTS, show_progress_bar=False))


def test_a_real_encoder_is_the_same(minilm: str) -> None:
    model = sentence_transformers.SentenceTransformer(minilm, device="cpu")
    expected = embeddings(model)
    torch.testing.assert_close(embeddings(ek.convert(model)), expected, **CLOSE)
    assert torch.equal(embeddings(ek.restore(model)), expected)


def test_a_compact_encoder_is_saved_and_loaded(tiny_bert: str, tmp_path: Path) -> None:
    model = encoder(tiny_bert)
    base = model[0].auto_model
    ticket = some_ticket(base)
    expected = embeddings(ek.apply_ticket(ek.convert(model), ticket))
    before = sum(parameter.numel() for parameter in model.parameters())
    ek.compact(model, ticket)
    assert sum(parameter.numel() for parameter in model.parameters()) < before
    torch.testing.assert_close(embeddings(model), expected, **CLOSE)
    model.save(str(tmp_path / "small"))
    loaded = sentence_transformers.SentenceTransformer(str(tmp_path / "small"), device="cpu")
    assert loaded[0].auto_model.config.ticket == base.config.ticket
    torch.testing.assert_close(embeddings(loaded), expected, **CLOSE)
    torch.testing.assert_close(embeddings(ek.convert(loaded)), expected, **CLOSE)


def test_its_trainer_trains_a_converted_encoder_as_a_stock_one(tiny_bert: str, tmp_path: Path) -> None:
    from datasets import Dataset
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    pairs = Dataset.from_dict({"anchor": TEXTS * 4, "positive": [text[::-1] for text in TEXTS] * 4})
    runs = []
    for converted in (False, True):
        model = encoder(tiny_bert)
        args = sentence_transformers.SentenceTransformerTrainingArguments(
            str(tmp_path), max_steps=8, per_device_train_batch_size=4, learning_rate=1e-3, logging_steps=1,
            save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = sentence_transformers.SentenceTransformerTrainer(
            model=ek.convert(model) if converted else model, args=args, train_dataset=pairs,
            loss=MultipleNegativesRankingLoss(model),
        )  # fmt: skip
        trainer.train()
        runs.append(torch.tensor([r["loss"] for r in trainer.state.log_history if "loss" in r]))
    stock, ours = runs
    assert len(stock) == 8 and stock[0] != stock[-1]
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-4)  # as many digits as are logged
