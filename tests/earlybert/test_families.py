"""The programs with models of every family, none of which they know by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AlbertModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    DistilBertModel,
    ElectraModel,
    ModernBertModel,
    RobertaModel,
)

import earlybert_kernels as ek
from earlybert import FinetuneArguments, PretrainArguments, finetune, pretrain
from earlybert.programs.verify import verify
from earlybert.tasks.heads import head_of, renew
from earlybert_kernels.models import families
from tests.helpers.tiny_bert import tiny_model
from tests.helpers.toy import FILLERS, HEADS, HIDDEN, LAYERS, NEURONS

Make = Callable[..., FinetuneArguments]


@pytest.fixture(params=[AlbertModel, RobertaModel, DistilBertModel, ElectraModel, ModernBertModel])
def folder(request: pytest.FixtureRequest, tiny_bert: str, tmp_path: Path) -> str:
    """A small model of another family, without dropout, and the toy BERT's tokenizer."""
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    sizes = {"hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS}
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    tiny_model(cls=request.param, **sizes, intermediate_size=NEURONS, vocab_size=vocabulary).save_pretrained(folder)
    return str(folder)


def test_a_model_of_another_family_is_searched_and_its_ticket_cut(folder: str, arguments: Make, tmp_path: Path) -> None:
    metrics = finetune(arguments(model=folder, max_steps=4, search_steps=4))
    assert metrics["steps"]["train"] == 4 and metrics["parameters"]["trained"] < metrics["parameters"]["dense"]
    assert all(finding.holds for finding in verify(str(tmp_path / "run"))), verify(str(tmp_path / "run"))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert type(model).__name__.startswith("Compact") and ek.is_converted(ek.convert(model))


def test_kernels_and_stock_learn_hidden_words_alike(folder: str, tmp_path: Path) -> None:
    """The first with packed batches, whose positions count from 0, the second with padded ones."""
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(" ".join([word] * (6 + number)) for number, word in enumerate(FILLERS * 4)) + "\n")
    runs = {}
    for kernels in ("auto", "off"):
        runs[kernels] = pretrain(
            PretrainArguments(
                model=folder,
                train_file=str(texts),
                output_dir=str(tmp_path / kernels),
                method="dense",
                kernels=kernels,
                batch_size=8,
                max_length=12,
                long_length=20,
                max_steps=5,
                learning_rate=1e-3,
                device="cpu",
            )
        )
    ours, stock = runs.values()
    assert ours["eval"]["eval_loss"] == pytest.approx(stock["eval"]["eval_loss"], rel=1e-4)
    assert ours["train_log"][0]["loss"] == pytest.approx(stock["train_log"][0]["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "auto_class", [AutoModelForSequenceClassification, AutoModelForQuestionAnswering, AutoModelForMaskedLM]
)
@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_what_a_checkpoint_lacks_of_a_head_comes_from_the_seed(family, auto_class) -> None:
    head = next(head for head in family.heads if head.auto_class == auto_class.__name__)
    model = tiny_model(cls=head.stock, **({"num_labels": 2} if "Question" in auto_class.__name__ else {}))
    assert head_of(model) is head
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    prefix = f"{model.base_model_prefix}."
    names = (name for name, _ in model.named_parameters(remove_duplicate=False))  # a bias can have two
    absent = {name for name in names if not name.startswith(prefix)}
    assert absent and not renew(model, set(), 3)
    of_base = {name for name, p in model.named_parameters() if p in set(model.base_model.parameters())}  # tied ones too
    after = []
    for _ in range(2):
        torch.rand(5)
        assert renew(model, absent, 3)
        after.append({name: p.detach().clone() for name, p in model.named_parameters()})
    for name, value in before.items():
        assert torch.equal(after[0][name], after[1][name])
        assert torch.equal(after[0][name], value) is (name in of_base), name
        if name.endswith("bias") and name not in of_base:
            assert not after[0][name].any()
