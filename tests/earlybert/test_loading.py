"""Which model a run starts from: the one that was asked for, or an error before anything is written."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, BertForSequenceClassification, BertModel

from earlybert import FinetuneArguments, finetune
from earlybert.cli import main
from earlybert.errors import UsageError
from earlybert.loading import load_model, read_config
from earlybert.tasks import TASKS

Make = Callable[..., FinetuneArguments]


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def flipped(folder: str | Path, target: Path, names: tuple[str, ...] = ("POSITIVE", "Negative")) -> Path:
    """A copy of a classifier's folder with its two classes in the other order, in the weights and in the config."""
    copy = Path(shutil.copytree(folder, target))
    weights = load_file(copy / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    edit_config(copy, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    return copy


@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_a_fine_tuned_checkpoint_keeps_what_its_labels_mean(
    arguments: Make, tmp_path: Path, kernels: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = finetune(arguments(method="dense", max_steps=80, learning_rate=2e-3, kernels=kernels))
    accuracy = first["eval"]["accuracy"]
    assert accuracy > 0.9
    trained = tmp_path / "run" / "model"
    still = {"method": "dense", "max_steps": 1, "learning_rate": 1e-9, "kernels": kernels}
    caplog.set_level(logging.INFO, "earlybert")
    for name, folder, line in (
        ("same", trained, "classifier: the checkpoint's"),
        ("flipped", flipped(trained, tmp_path / "flipped-model"), "its labels put in the task's order"),
    ):
        caplog.clear()
        again = finetune(arguments(**still, model=str(folder), output_dir=str(tmp_path / name)))
        assert again["eval"]["accuracy"] == accuracy
        assert sum(line in message for message in caplog.messages) == 1


@pytest.mark.parametrize("names", [("LABEL_0", "LABEL_1"), ("good", "bad"), ("negative", "negative")])
def test_a_classifier_of_other_labels_is_new_and_from_the_seed(
    tiny_bert: str, tmp_path: Path, names: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    config = AutoConfig.from_pretrained(tiny_bert)
    config.id2label = {0: "negative", 1: "positive"}
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    own = load_file(tmp_path / "model.safetensors")["classifier.weight"]
    caplog.set_level(logging.INFO, "earlybert")
    first, same, other = (
        load_model(str(tmp_path), config, dict(enumerate(names)), seed=seed).classifier.weight for seed in (1, 1, 2)
    )
    assert "are not the task's (negative, positive)" in caplog.text
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not torch.equal(first, own)


def test_mnli_is_put_in_order(tiny_bert: str, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_bert)
    config.id2label = {0: "Contradiction", 1: "ENTAILMENT", 2: "neutral"}
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    own = load_file(tmp_path / "model.safetensors")["classifier.weight"]
    config, labels = read_config(str(tmp_path))
    config.id2label = dict(enumerate(TASKS["mnli"].labels))
    assert torch.equal(load_model(str(tmp_path), config, labels, seed=1).classifier.weight, own[[1, 2, 0]])


def test_the_real_model(minilm: str, data_dir: Path, tmp_path: Path, arguments: Make) -> None:
    config = AutoConfig.from_pretrained(minilm)
    config.id2label = {0: "negative", 1: "positive"}
    model = BertForSequenceClassification.from_pretrained(minilm, config=config)
    model.save_pretrained(tmp_path / "straight")
    for file in Path(minilm).glob("*token*"):
        shutil.copy(file, tmp_path / "straight")
    for file in Path(minilm).glob("vocab*"):
        shutil.copy(file, tmp_path / "straight")
    flipped(tmp_path / "straight", tmp_path / "flipped")
    results = [
        finetune(
            arguments(
                model=str(tmp_path / name),
                data_dir=str(data_dir / "sst2"),
                output_dir=str(tmp_path / f"run-{name}"),
                method="dense",
                max_steps=1,
                learning_rate=1e-9,
                max_train_examples=8,
                max_eval_examples=200,
            )
        )["eval"]
        for name in ("straight", "flipped")
    ]
    assert results[0] == results[1]
    assert results[0]["accuracy"] != 0.5  # where the other order would give the same


def with_fewer_layers(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=2)


def with_relative_positions(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.0.attention.self.distance_embedding.weight"] = torch.zeros(63, 8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def without_a_tokenizer(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()


def with_fewer_embeddings(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    config.vocab_size -= 3
    BertModel(config).save_pretrained(folder)


def torn(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_an_odd_hidden_size(folder: Path) -> None:
    edit_config(folder, hidden_size=30)


def with_relative_positions_in_its_config(folder: Path) -> None:
    edit_config(folder, position_embedding_type="relative_key_query")


def with_pruned_heads(folder: Path) -> None:
    edit_config(folder, pruned_heads={"0": [1]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_fewer_layers, "the checkpoint holds weights that a model of its config.json does not have: "),
        (with_relative_positions, ".layer.0.attention.self.distance_embedding.weight"),
        (with_relative_positions_in_its_config, "position_embedding_type='relative_key_query'"),
        (with_pruned_heads, "pruned_heads"),
        (without_a_tokenizer, "the tokenizer's files are not there"),
        (with_fewer_embeddings, "the tokenizer's files are not there, or not this model's"),
        (torn, "no weights could be read there"),
        (with_an_odd_hidden_size, "hidden_size=30 is no multiple of config.num_attention_heads=4"),
    ],
)
@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_a_folder_that_is_not_the_model_is_refused_and_nothing_written(
    arguments: Make, tiny_bert: str, tmp_path: Path, change: Callable, message: str, kernels: str
) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "changed"))
    change(folder)
    with pytest.raises(UsageError) as error:
        finetune(arguments(model=str(folder), kernels=kernels))
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_attention_weights_that_a_config_asks_for_are_ignored(
    arguments: Make, tiny_bert: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "attentions"))
    edit_config(folder, output_attentions=True)
    finetune(arguments(model=str(folder), max_steps=1, method="dense"))
    assert not any("slowly" in str(warning.message) for warning in recwarn.list)


def test_one_token_type_is_enough(arguments: Make, tiny_bert: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "one-type"))
    config = AutoConfig.from_pretrained(tiny_bert)
    config.type_vocab_size = 1
    BertModel(config).save_pretrained(folder)
    rows = "".join(f"{i}\tgood film\tbad {'story ' * (i % 3)}\tentailment\n" for i in range(20))
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("index\tsentence1\tsentence2\tlabel\n" + rows)
    run = arguments(model=str(folder), task="rte", data_dir=str(tmp_path), method="dense", max_steps=1)
    assert finetune(run)["eval"]["accuracy"] in (0.0, 1.0)


def test_a_tokenizer_needs_no_pad_token(arguments: Make, tiny_bert: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "no-pad"))
    with_pad = finetune(arguments(method="dense", max_steps=2))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": None}))
    without = finetune(arguments(method="dense", max_steps=2, model=str(folder), output_dir=str(tmp_path / "other")))
    assert without["train_log"] == with_pad["train_log"]


def test_an_empty_file_is_refused(arguments: Make, toy_sst2: str, tmp_path: Path) -> None:
    data = Path(shutil.copytree(toy_sst2, tmp_path / "data"))
    (data / "dev.tsv").write_text("sentence\tlabel\n\n\n")
    with pytest.raises(UsageError, match="expected at least one example, found none"):
        finetune(arguments(data_dir=str(data)))
    (data / "dev.tsv").unlink()
    (data / "dev.tsv").mkdir()
    with pytest.raises(UsageError, match=r"dev\.tsv: a folder, expected a file"):
        finetune(arguments(data_dir=str(data)))


def test_blank_lines_at_the_end_of_a_file_are_no_rows(arguments: Make, toy_sst2: str, tmp_path: Path) -> None:
    data = Path(shutil.copytree(toy_sst2, tmp_path / "data"))
    with (data / "dev.tsv").open("a") as file:
        file.write("\n \r\n\n")
    assert finetune(arguments(data_dir=str(data), method="dense", max_steps=1))["examples"]["eval"] == {"dev": 40}


@pytest.mark.filterwarnings("error")
def test_a_class_that_is_never_said_is_no_warning() -> None:
    import numpy as np

    from earlybert.tasks import compute_metrics, get_task

    logits = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert compute_metrics(get_task("mrpc"), logits, np.array([0, 0]))["f1"] == 0


def test_main_says_it_in_a_line(
    tiny_bert: str, toy_sst2: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "torn"))
    torn(folder)
    out = tmp_path / "out"
    flags = ["--model", str(folder), "--task", "sst2", "--data-dir", toy_sst2, "--output-dir", str(out)]
    assert main(["finetune", *flags, "--max-length", "16", "--device", "cpu"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"earlybert: error: --model {folder}: no weights")
    assert not out.exists()
