from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    SqueezeBertConfig,
)

from earlybert import FinetuneArguments, finetune
from earlybert.errors import OutputExistsError, UsageError
from earlybert.loading import read_config
from earlybert.programs import preparation
from earlybert.tasks import TASKS
from tests.helpers.model_folder import edit_config
from tests.helpers.toy import HEADS, LAYERS, NEURONS

Make = Callable[..., FinetuneArguments]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "--method: expected one of earlybert, dense, random, inverted, search, found magic"),
        (
            {"task": "sst"},
            "unknown task 'sst'; the tasks are classification, regression, multilabel, token-classification",
        ),
        ({"head_ratio": 1.0}, "--head-ratio: expected a share from 0 to less than 1, found 1.0"),
        ({"neuron_ratio": -0.1}, "--neuron-ratio: expected a share"),
        ({"batch_size": 0}, "--batch-size: expected at least 1, found 0"),
        ({"learning_rate": 0.0}, "--learning-rate: expected more than 0"),
        ({"gate_l1": -1.0}, "--gate-l1: expected 0 or more"),
        ({"distillation_hidden_states": True}, "--distillation-hidden-states: expected --distillation, the share"),
        ({"gate_l1": 1e300}, "--gate-l1: expected 0 or more and at most 1e+30"),
        ({"num_train_epochs": 1e308}, "--num-train-epochs: expected more than 0 and at most 1e+09"),
        ({"search_epochs": float("inf")}, "--search-epochs: expected more than 0 and at most 1e+09"),
        ({"seed": -1}, "--seed: expected 0 or more"),
        ({"max_length": 64}, "--max-length: expected at most 32, the model's longest input, found 64"),
        ({"max_length": 2}, "--max-length: expected at least 3"),
        ({"kernels": "off", "padding": "none"}, "--padding none: stock modules compute padding"),
        ({"method": "dense", "ticket": "t.json"}, "--ticket: --method dense trains the whole model"),
        ({"method": "inverted", "ticket": "t.json"}, "--ticket: --method inverted needs the gates"),
        ({"ticket": "nowhere.json"}, "--ticket nowhere.json: no such file"),
        ({"resume": True, "overwrite_output_dir": True}, "exclude each other"),
        ({"data_dir": "/nowhere"}, "/nowhere/train.tsv: no such file; task sst2 needs train.tsv, dev.tsv"),
        ({"model": "/nowhere"}, "--model /nowhere: no such folder"),
        ({"model": "no/where"}, "--model no/where: no model could be read there"),
        ({"device": "toaster"}, "--device toaster"),
        ({"device": "mtia"}, "--device mtia: torch cannot use it here: "),
        ({"device": "meta"}, "--device meta: torch cannot use it here: "),
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


def test_float16_needs_a_device_with_loss_scaling(arguments: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "find_device", lambda name: torch.device("meta"))
    with pytest.raises(UsageError, match="--dtype float16 needs autocast and loss scaling"):
        finetune(arguments(dtype="float16"))


def test_where_nothing_can_be_written_is_said_before_a_model_is_loaded(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_model_is_loaded: None
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputExistsError, match="expected a folder, found a file at .*file"):
        finetune(arguments(output_dir=str(tmp_path / "file" / "run")))
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # permissions are not for root
    with pytest.raises(UsageError, match="nothing can be written to"):
        finetune(arguments(output_dir=str(tmp_path / "some" / "run")))


def test_the_folder_of_a_run_is_told_from_that_of_its_model(arguments: Make, tmp_path: Path) -> None:
    (tmp_path / "earlier" / "model").mkdir(parents=True)
    with pytest.raises(UsageError, match="--model .*earlier: the folder of a run, whose model is in .*earlier/model"):
        finetune(arguments(model=str(tmp_path / "earlier")))


def test_a_config_of_no_model_is_told(arguments: Make, tiny_bert: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    edit_config(folder, hidden_dropout_prob=2.0)
    with pytest.raises(UsageError, match="no model can be made of its config.json: dropout probability has to be"):
        finetune(arguments(model=str(folder)))


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
    folder = tmp_path / "squeezebert"
    SqueezeBertConfig().save_pretrained(folder)
    with pytest.raises(UsageError, match=f"--model {folder}: .*squeezebert"):
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


def test_a_model_whose_weights_are_not_there_is_refused(arguments: Make, tiny_bert: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("encoder.layer", "encoder.block"): tensor for name, tensor in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"found none.*bert.encoder.layer.0.attention.* and \d+ more"):
        finetune(arguments(model=str(folder)))
    name = "encoder.layer.1.output.dense.weight"
    save_file(weights | {name: weights[name][:, 1:].contiguous()}, folder / "model.safetensors")
    with pytest.raises(UsageError, match=rf"none of the config's shape, for bert.{name}$"):
        finetune(arguments(model=str(folder)))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="no weights could be read there"):
        finetune(arguments(model=str(folder)))
    assert not (tmp_path / "run").exists()


def test_a_model_of_masked_words_needs_no_pooler(arguments: Make, tiny_bert: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "mlm"))
    BertForMaskedLM(BertConfig.from_pretrained(tiny_bert)).save_pretrained(folder)
    assert finetune(arguments(model=str(folder), method="dense", max_steps=1))["steps"]["train"] == 1


@pytest.mark.parametrize("name", ["model", "ticket", "data_dir"])
def test_overwriting_does_not_remove_what_the_run_reads(arguments: Make, tmp_path: Path, name: str) -> None:
    finetune(arguments(max_steps=1, search_steps=1))
    run = tmp_path / "run"
    (tmp_path / "link").symlink_to(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    path = tmp_path / "link" / ("ticket.json" if name == "ticket" else "model")
    with pytest.raises(UsageError, match=f"--overwrite-output-dir would remove .*, which --{name.replace('_', '-')} "):
        finetune(arguments(overwrite_output_dir=True, **{name: str(path)}))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_overwriting_removes_nothing_before_the_model_is_loaded(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(arguments(method="dense", max_steps=1))

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", fail)
    with pytest.raises(UsageError, match="no weights could be read there: the disk is gone"):
        finetune(arguments(method="dense", overwrite_output_dir=True))
    assert (tmp_path / "run" / "metrics.json").exists()
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("flag", ["resume", "overwrite_output_dir"])
@pytest.mark.parametrize("foreign", ["metrics.json", "arguments.json", "model/mine.txt"])
def test_a_folder_that_is_no_runs_is_left_alone(arguments: Make, tmp_path: Path, foreign: str, flag: str) -> None:
    path = tmp_path / "run" / foreign
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(OutputExistsError, match="holds other files, which are no run's"):
        finetune(arguments(method="dense", **{flag: True}))
    assert path.read_text() == "{}"


def test_a_tasks_kind_does_not_depend_on_the_model_it_starts_from(
    arguments: Make, tiny_bert: str, tmp_path: Path
) -> None:
    regression = Path(shutil.copytree(tiny_bert, tmp_path / "regression"))
    config = BertConfig.from_pretrained(tiny_bert)
    config.num_labels, config.problem_type = 1, "regression"
    BertForSequenceClassification(config).save_pretrained(regression)
    classes = Path(shutil.copytree(tiny_bert, tmp_path / "classes"))
    config.num_labels, config.problem_type = 3, "single_label_classification"
    BertForSequenceClassification(config).save_pretrained(classes)
    for model, task in ((regression, "sst2"), (regression, "rte"), (classes, "stsb"), (classes, "sst2")):
        config, _ = read_config(str(model))
        TASKS[task].configure(config)
        kind = "regression" if task == "stsb" else "single_label_classification"
        assert (config.problem_type, config.num_labels) == (kind, 1 if task == "stsb" else 2)
        assert config.label2id == {name: index for index, name in config.id2label.items()}
    metrics = finetune(arguments(model=str(regression), method="dense", max_steps=2))
    saved = AutoConfig.from_pretrained(tmp_path / "run" / "model")
    assert saved.problem_type == "single_label_classification"
    assert metrics["train_log"][-1]["loss"] < 2, "a cross entropy"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (torch.autocast("cpu", torch.bfloat16), "autocast is on"),
        (torch.no_grad(), "gradients are off"),
        (torch.inference_mode(), "gradients are off"),
    ],
)
def test_states_of_torch_that_would_change_a_run(arguments: Make, state: Any, message: str) -> None:
    with state, pytest.raises(UsageError, match=message):
        finetune(arguments())


def test_another_default_dtype(arguments: Make) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(UsageError, match="torch's default dtype is torch.float64"):
            finetune(arguments())
    finally:
        torch.set_default_dtype(torch.float32)
