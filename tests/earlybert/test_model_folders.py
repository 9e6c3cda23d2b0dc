"""Folders that are not the model that was asked for, each refused before anything is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, BertForSequenceClassification, BertModel, SqueezeBertConfig, SqueezeBertModel

import earlybert_kernels as ek
from earlybert import FinetuneArguments, finetune
from earlybert.cli import main
from earlybert.errors import UsageError
from tests.helpers.model_folder import edit_config, edit_weights, torn, write_pruned

Make = Callable[..., FinetuneArguments]


def with_fewer_layers(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=2)


def with_relative_positions(folder: Path) -> None:
    edit_weights(folder, **{"encoder.layer.0.attention.self.distance_embedding.weight": torch.zeros(63, 8)})


def without_a_tokenizer(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()


def with_fewer_embeddings(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    config.vocab_size -= 3
    BertModel(config).save_pretrained(folder)


def with_weights_beside_its_layers(folder: Path) -> None:
    edit_weights(folder, **{"embeddings.extra_embeddings.weight": torch.zeros(2), "pooler.extra": torch.zeros(2)})


def with_nan(folder: Path) -> None:
    edit_weights(folder, **{"encoder.layer.1.output.dense.bias": torch.full((32,), torch.nan)})


def with_an_empty_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").touch()


def with_an_empty_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")


def with_a_broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def with_text_for_a_size(folder: Path) -> None:
    edit_config(folder, hidden_size="32")


def with_a_list_of_labels(folder: Path) -> None:
    edit_config(folder, id2label=["negative", "positive"])


def without_heads(folder: Path) -> None:
    edit_config(folder, num_attention_heads=0)


def without_layers(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = 0
    BertModel(config).save_pretrained(folder)


def with_an_unknown_activation(folder: Path) -> None:
    edit_config(folder, hidden_act="nonsense")


def with_padding_beyond_the_embeddings(folder: Path) -> None:
    edit_config(folder, pad_token_id=999)


def quantised(folder: Path) -> None:
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})


def with_an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def of_half_a_ticket(folder: Path) -> None:
    model = BertForSequenceClassification.from_pretrained(folder)
    ek.compact(model, ek.Ticket([[0], [1], [2]], [[0], [1], [2]])).save_pretrained(folder)
    edit_config(folder, num_hidden_layers=2)


def with_gates(folder: Path) -> None:
    ek.enable_gates(BertForSequenceClassification.from_pretrained(folder)).save_pretrained(folder)


def of_another_family(folder: Path) -> None:
    config = SqueezeBertConfig(
        hidden_size=32, embedding_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48
    )
    SqueezeBertModel(config).save_pretrained(folder)


def with_an_odd_hidden_size(folder: Path) -> None:
    edit_config(folder, hidden_size=30)


def with_relative_positions_in_its_config(folder: Path) -> None:
    edit_config(folder, position_embedding_type="relative_key_query")


def with_pruned_heads(folder: Path) -> None:
    edit_config(folder, pruned_heads={"0": [1]})


def with_pruned_heads_that_it_lacks(folder: Path) -> None:
    edit_config(folder, pruned_heads={"0": [9]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_fewer_layers, "the checkpoint holds weights that a model of its config.json does not have: "),
        (with_relative_positions, ".layer.0.attention.self.distance_embedding.weight"),
        (with_relative_positions_in_its_config, "position_embedding_type='relative_key_query'"),
        (with_pruned_heads, "no weights could be read there: the checkpoint"),
        (with_pruned_heads_that_it_lacks, "names heads [9] of layer 0, which the model lacks"),
        (without_a_tokenizer, "the tokenizer's files are not there"),
        (with_fewer_embeddings, "the tokenizer's files are not there, or not this model's"),
        (torn, "no weights could be read there"),
        (with_an_odd_hidden_size, "hidden_size=30 is no multiple of config.num_attention_heads=4"),
        (with_weights_beside_its_layers, "embeddings.extra_embeddings.weight, pooler.extra. The config"),
        (with_nan, "expected finite weights, found NaN or infinity in encoder.layer.1.output.dense.bias"),
        (with_an_empty_pickle, "no weights could be read there: EOFError"),
        (with_an_empty_index, "no weights could be read there: KeyError 'weight_map'"),
        (with_a_broken_tokenizer, "no tokenizer could be read there: "),
        (with_text_for_a_size, "no model could be read there: Validation error for field 'hidden_size': TypeError"),
        (with_a_list_of_labels, "no model could be read there: "),
        (without_heads, "hidden_size=32 is no multiple of config.num_attention_heads=0"),
        (without_layers, "says num_hidden_layers 0, expected at least 1"),
        (with_an_unknown_activation, "nonsense"),
        (with_padding_beyond_the_embeddings, "no weights could be read there: Padding_idx must be within"),
        (quantised, "its weights are quantised"),
        (with_an_adapter, "there is an adapter, which would be left out"),
        (of_half_a_ticket, "the ticket has 3 layers, the model 2"),
        (with_gates, "it was saved with the gates of a search"),
        (of_another_family, "no adapter for models of type 'squeezebert'"),
    ],
)
@pytest.mark.parametrize(("method", "kernels"), [("earlybert", "auto"), ("earlybert", "off"), ("dense", "off")])
def test_a_folder_that_is_not_the_model_is_refused_and_nothing_written(
    arguments: Make, tiny_bert: str, tmp_path: Path, change: Callable, message: str, method: str, kernels: str
) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "changed"))
    change(folder)
    with pytest.raises(UsageError) as error:
        finetune(arguments(model=str(folder), method=method, kernels=kernels))
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_transformers_4_pruned_is_trained_on(arguments: Make, tiny_bert: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "pruned"))
    write_pruned(BertModel.from_pretrained(folder), folder)
    dense = sum(p.numel() for p in BertForSequenceClassification.from_pretrained(tiny_bert).parameters())
    metrics = finetune(arguments(model=str(folder), max_steps=2, search_steps=2))
    assert metrics["parameters"]["dense"] < dense and metrics["ticket"]["heads_of"] == [2, 4, 3]
    config = AutoConfig.from_pretrained(tmp_path / "run" / "model")
    assert all(
        set(kept) <= {*range(4)} - {*gone} for kept, gone in zip(config.ticket.heads, ([1, 3], [], [0]), strict=True)
    )
    assert main(["verify", str(tmp_path / "run")]) == 0


def test_attention_weights_that_a_config_asks_for_are_ignored(
    arguments: Make, tiny_bert: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "attentions"))
    edit_config(folder, output_attentions=True)
    finetune(arguments(model=str(folder), max_steps=1, method="dense"))
    assert not any("slowly" in str(warning.message) for warning in recwarn.list)


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


@pytest.mark.parametrize("change", [torn, with_pruned_heads, with_text_for_a_size, of_another_family])
def test_verify_says_that_no_model_can_be_read(
    arguments: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable
) -> None:
    finetune(arguments(max_steps=1, search_steps=1))
    change(tmp_path / "run" / "model")
    assert main(["verify", str(tmp_path / "run")]) == 2
    assert "model: no model could be read there: " in capsys.readouterr().err.splitlines()[-1]
