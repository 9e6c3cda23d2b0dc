"""The programs with models of every family, none of which they know by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    DistilBertModel,
    ElectraModel,
    RobertaModel,
)

import earlybert_kernels as ek
from earlybert import FinetuneArguments, finetune
from earlybert.programs.verify import verify
from earlybert.tasks.heads import head_of, renew
from earlybert_kernels.models import families
from tests.helpers.tiny_bert import tiny_model
from tests.helpers.toy import HEADS, HIDDEN, LAYERS, NEURONS

Make = Callable[..., FinetuneArguments]


@pytest.mark.parametrize("base", [RobertaModel, DistilBertModel, ElectraModel])
def test_a_model_of_another_family_is_searched_and_its_ticket_cut(
    base, arguments: Make, tiny_bert: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))  # for its tokenizer
    sizes = {"hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS}
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    tiny_model(cls=base, **sizes, intermediate_size=NEURONS, vocab_size=vocabulary).save_pretrained(folder)
    metrics = finetune(arguments(model=str(folder), max_steps=4, search_steps=4))
    assert metrics["steps"]["train"] == 4 and metrics["parameters"]["trained"] < metrics["parameters"]["dense"]
    assert all(finding.holds for finding in verify(str(tmp_path / "run"))), verify(str(tmp_path / "run"))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert type(model).__name__.startswith("Compact") and ek.is_converted(ek.convert(model))


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
