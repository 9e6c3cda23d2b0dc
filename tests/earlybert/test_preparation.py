from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import HEADS, LAYERS, NEURONS
from transformers import AutoModelForSequenceClassification, BertConfig, DistilBertConfig

from earlybert import FinetuneArguments, finetune
from earlybert.errors import UsageError

Make = Callable[..., FinetuneArguments]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "--method: expected one of earlybert, dense, random, inverted, found magic"),
        ({"task": "squad"}, "unknown task 'squad'; the tasks are cola"),
        ({"head_ratio": 1.0}, "--head-ratio: expected a share from 0 to less than 1, found 1.0"),
        ({"neuron_ratio": -0.1}, "--neuron-ratio: expected a share"),
        ({"batch_size": 0}, "--batch-size: expected at least 1, found 0"),
        ({"learning_rate": 0.0}, "--learning-rate: expected more than 0"),
        ({"gate_l1": -1.0}, "--gate-l1: expected 0 or more"),
        ({"seed": -1}, "--seed: expected 0 or more"),
        ({"max_length": 64}, "--max-length: expected at most 32, the model's longest input, found 64"),
        ({"max_length": 2}, "--max-length: expected at least 3"),
        ({"kernels": "off", "padding": "none"}, "--padding none: stock modules compute padding"),
        ({"method": "dense", "ticket": "t.json"}, "--ticket: --method dense trains the whole model"),
        ({"method": "inverted", "ticket": "t.json"}, "--ticket: --method inverted needs the gates"),
        ({"ticket": "nowhere.json"}, "--ticket nowhere.json: no such file"),
        ({"resume": True, "overwrite_output_dir": True}, "exclude each other"),
        ({"data_dir": "/nowhere"}, "/nowhere/train.tsv: no such file; task sst2 needs train.tsv, dev.tsv"),
        ({"model": "/nowhere"}, "--model /nowhere: no model could be read there"),
        ({"device": "toaster"}, "--device toaster"),
        ({"dtype": "float16"}, "--dtype float16 needs"),
    ],
)
def test_refused_before_anything_is_loaded_or_written(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(UsageError) as error:
        finetune(arguments(**changes))
    assert isinstance(error.value, ValueError)
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_gpu_that_is_not_there_is_refused(arguments: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--device cuda: torch finds no CUDA device here"):
        finetune(arguments(device="cuda"))


@pytest.mark.parametrize(
    ("ticket", "message"),
    [
        ({"heads": [[0]], "neurons": [[0]]}, "layers"),
        ({"heads": [[0]] * LAYERS, "neurons": [[NEURONS]] * LAYERS}, str(NEURONS)),
        ({"heads": [[HEADS]] * LAYERS, "neurons": [[0]] * LAYERS}, str(HEADS)),
        ({"heads": [[]] * LAYERS, "neurons": [[0]] * LAYERS}, "layer 0"),
        ({"kept": []}, "not a ticket"),
    ],
)
def test_a_ticket_that_does_not_fit_is_refused(
    arguments: Make, tmp_path: Path, ticket: dict[str, Any], message: str
) -> None:
    path = tmp_path / "ticket.json"
    path.write_text(json.dumps(ticket))
    with pytest.raises(UsageError, match=f"--ticket {path}: .*{message}"):
        finetune(arguments(ticket=str(path)))


def test_a_family_without_an_adapter_is_refused_by_its_config(arguments: Make, tmp_path: Path) -> None:
    folder = tmp_path / "distilbert"
    DistilBertConfig().save_pretrained(folder)
    with pytest.raises(UsageError, match=f"--model {folder}: .*distilbert"):
        finetune(arguments(model=str(folder)))


def test_a_decoder_is_refused_by_its_config(arguments: Make, tmp_path: Path) -> None:
    folder = tmp_path / "decoder"
    BertConfig(is_decoder=True).save_pretrained(folder)
    with pytest.raises(UsageError, match=f"--model {folder}: .*decoder"):
        finetune(arguments(model=str(folder)))


def test_a_forced_backend_that_cannot_run_is_refused(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EARLYBERT_BACKEND", "cuda")
    with pytest.raises(UsageError, match="EARLYBERT_BACKEND=cuda cannot be used on device cpu"):
        finetune(arguments())
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("EARLYBERT_BACKEND", "reference")
    metrics = finetune(arguments())
    assert set(metrics["backend"].values()) == {"reference"}


def test_a_broken_row_is_found_before_the_model_is_loaded(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.tsv").write_text("sentence\tlabel\ngood\t1\n")
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\ngood\t1\nbad\n")
    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(UsageError, match=r"dev.tsv:3: expected 2 tab-separated columns, found 1"):
        finetune(arguments(data_dir=str(tmp_path)))
