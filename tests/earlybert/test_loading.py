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
from model_folder import edit_config, edit_weights
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
)

from earlybert import FinetuneArguments, finetune
from earlybert.errors import UsageError
from earlybert.loading import load_model, read_config
from earlybert.tasks import TASKS
from earlybert.training.data import EncodedExamples, check_fits
from earlybert.training.ragged import Ragged

Make = Callable[..., FinetuneArguments]
TASK = TASKS["sst2"]


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
    labels = dict(enumerate(names))
    first, same, other = (
        load_model(str(tmp_path), TASK, config, labels, seed=seed).classifier.weight for seed in (1, 1, 2)
    )
    assert "are not the task's (negative, positive)" in caplog.text
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not torch.equal(first, own)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"id2label": {"0": "POSITIVE", "1": "NEGATIVE"}, "label2id": None}, {0: "POSITIVE", 1: "NEGATIVE"}),
        ({"label2id": {"POSITIVE": 0, "NEGATIVE": 1}}, {0: "POSITIVE", 1: "NEGATIVE"}),
        (
            {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"NEGATIVE": 1, "POSITIVE": 0}},
            {0: "POSITIVE", 1: "NEGATIVE"},
        ),
        ({"id2label": {"0": "POSITIVE", "1": "NEGATIVE"}, "num_labels": 3}, {0: "POSITIVE", 1: "NEGATIVE"}),
        # What transformers goes by where both are there: somebody has changed one of them.
        (
            {"id2label": {"0": "POSITIVE", "1": "NEGATIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}},
            {0: "POSITIVE", 1: "NEGATIVE"},
        ),
        ({"num_labels": 1}, {0: "LABEL_0"}),
        ({"architectures": None, "id2label": {"0": "a", "1": "b"}}, {0: "a", 1: "b"}),
        ({"architectures": ["BertForTokenClassification"], "id2label": {"0": "POSITIVE", "1": "NEGATIVE"}}, {}),
    ],
)
def test_the_names_of_a_checkpoints_classes(
    tiny_bert: str, tmp_path: Path, fields: dict[str, Any], expected: dict[int, str]
) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "named"))
    edit_config(folder, **{"architectures": ["BertForSequenceClassification"], **fields})
    assert read_config(str(folder))[1] == expected


def test_a_regression_keeps_the_one_output_of_its_own_kind(
    tiny_bert: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = AutoConfig.from_pretrained(tiny_bert)
    config.num_labels, config.problem_type = 1, "regression"
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    own = load_file(tmp_path / "model.safetensors")["classifier.weight"]
    config, labels = read_config(str(tmp_path))
    caplog.set_level(logging.INFO, "earlybert")
    assert torch.equal(load_model(str(tmp_path), TASK, config, labels, seed=1).classifier.weight, own)
    config.num_labels = 2  # a task of two classes, from there
    load_model(str(tmp_path), TASK, config, labels, seed=1)
    assert caplog.messages == [
        "classifier: the checkpoint's",
        "classifier: new; the checkpoint has none for as many labels",
    ]


def test_mnli_is_put_in_order(tiny_bert: str, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_bert)
    config.id2label = {0: "Contradiction", 1: "ENTAILMENT", 2: "neutral"}
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    own = load_file(tmp_path / "model.safetensors")["classifier.weight"]
    config, labels = read_config(str(tmp_path))
    config.id2label = dict(enumerate(TASKS["mnli"].labels))
    assert torch.equal(load_model(str(tmp_path), TASK, config, labels, seed=1).classifier.weight, own[[1, 2, 0]])


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


@pytest.mark.parametrize("kernels", ["auto", "off"])
@pytest.mark.parametrize(
    "fields",
    [
        {"return_dict": False},
        {"output_hidden_states": True, "output_attentions": True},
        {"chunk_size_feed_forward": 5},
    ],
)
def test_what_a_config_says_of_calling_the_model_changes_nothing(
    arguments: Make, tiny_bert: str, tmp_path: Path, fields: dict[str, Any], kernels: str
) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "changed"))
    edit_config(folder, **fields)
    runs = [
        finetune(arguments(model=str(m), kernels=kernels, method="dense", max_steps=2, output_dir=str(tmp_path / name)))
        for name, m in (("plain", tiny_bert), ("run", folder))
    ]
    assert runs[0]["train_log"] == runs[1]["train_log"]


def test_what_old_checkpoints_hold_beside_the_encoder_is_no_obstacle(tiny_bert: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "old"))
    edit_weights(
        folder,
        **{
            "embeddings.position_ids": torch.arange(32)[None],  # a buffer, which transformers 4 saved
            "cls.predictions.bias": torch.zeros(22),
            "decoder.encoder.weight": torch.zeros(2),
        },
    )
    config, labels = read_config(str(folder))
    load_model(str(folder), TASK, config, labels, seed=1)


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


def test_ids_beyond_the_embeddings_are_refused(tiny_bert: str) -> None:
    config = AutoConfig.from_pretrained(tiny_bert)

    def examples(pad: int = 0, **ids: int) -> EncodedExamples:
        features = {name: Ragged.of([[0], [0, value]]) for name, value in ids.items()}
        return EncodedExamples(features, {"input_ids": pad, "token_type_ids": 0}, {"labels": torch.zeros(2)})

    check_fits(examples(input_ids=21, token_type_ids=1), config)
    with pytest.raises(UsageError, match="makes input_ids up to 22 and the model has 22 embeddings"):
        check_fits(examples(input_ids=22), config)
    with pytest.raises(UsageError, match="makes input_ids up to 23"):
        check_fits(examples(input_ids=1, pad=23), config)
    with pytest.raises(UsageError, match="makes token_type_ids up to 2 and the model has 2 embeddings"):
        check_fits(examples(input_ids=1, token_type_ids=2), config)


def test_a_tokenizer_without_words_for_the_text_is_warned_of(
    arguments: Make, tiny_bert: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "foreign"))
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    foreign = {word if word.startswith("[") else f"{word}-": index for word, index in words.items()}
    BertTokenizer(vocab=foreign).save_pretrained(folder)
    metrics = finetune(arguments(model=str(folder), method="dense", max_steps=1))
    assert len(metrics["warnings"]) == 1
    assert metrics["warnings"][0].startswith("100% of the training examples' tokens are [UNK]")
    assert metrics["warnings"][0] in caplog.messages
    assert finetune(arguments(method="dense", max_steps=1, output_dir=str(tmp_path / "own")))["warnings"] == []


def test_an_example_without_tokens_is_refused(arguments: Make, tiny_bert: str, toy_sst2: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "bare"))
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor": None}))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    names = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": names, **special})
    )
    data = Path(shutil.copytree(toy_sst2, tmp_path / "data"))
    with (data / "train.tsv").open("a") as file:
        file.write(" \t1\n")
    assert AutoTokenizer.from_pretrained(folder)([" ", "good"])["input_ids"] == [[], [9]], "or this shows nothing"
    with pytest.raises(UsageError, match="makes no token at all of some examples"):
        finetune(arguments(model=str(folder), data_dir=str(data)))
    assert not (tmp_path / "run").exists()


def test_a_search_that_diverged_says_so_wherever_it_stopped(arguments: Make, caplog: pytest.LogCaptureFixture) -> None:
    diverging = {"search_learning_rate": 10.0, "gate_learning_rate": 1e-5, "gate_l1": 0.0, "early_bird_patience": 1}
    metrics = finetune(arguments(**diverging, search_steps=20, max_steps=1, early_bird_threshold=0.9))
    search = metrics["search"]
    assert search["drawn_by"] == "early bird", "between two looks at the loss"
    assert search["step"] < 20
    assert search["log"][-1]["step"] == search["step"]
    assert "the ticket was drawn from a search that diverged" in metrics["warnings"][0]
    assert metrics["warnings"][0] in caplog.messages


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
