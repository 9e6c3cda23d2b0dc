"""Compact models load as any model of transformers does, or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification
from transformers.models.auto import modeling_auto

import earlybert_kernels as ek
from earlybert_kernels.models import families
from earlybert_kernels.models.family import ModelFamily
from tests.helpers.model_folder import edit_config, edit_weights
from tests.helpers.tiny_bert import batch, some_ticket, tiny_model


def saved(folder: Path, cls: type = transformers.BertForSequenceClassification, num_labels: int = 3, **options):
    model = tiny_model(cls=cls, num_labels=num_labels)
    ek.compact(model, some_ticket(model)).save_pretrained(folder, **options)
    return model


def assert_same(loaded, model, dtype: torch.dtype = torch.float32) -> None:
    assert type(loaded) is type(model) and loaded.config.ticket == model.config.ticket
    ours, theirs = loaded.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name].to(dtype)) for name, tensor in ours.items())


def auto_classes(family: ModelFamily) -> dict[str, type]:
    """Every class of transformers that loads a stock model of the family, with the class that it loads."""
    found = {}
    for name in dir(modeling_auto):
        mapping = getattr(getattr(modeling_auto, name), "_model_mapping", None)
        if name.startswith("AutoModel") and mapping is not None and family.config in mapping:
            found[name] = mapping[family.config]
    return found


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_what_loads_a_stock_model_loads_a_compact_one(family: ModelFamily, tmp_path: Path) -> None:
    names = auto_classes(family)
    assert {"AutoModel", "AutoModelForTokenClassification"} <= names.keys()
    assert "AutoModelForPreTraining" in names or family.name == "ModernBERT"
    models = {cls: saved(tmp_path / cls.__name__, cls, num_labels=2) for cls in set(names.values())}
    for name, cls in names.items():
        assert_same(getattr(transformers, name).from_pretrained(tmp_path / cls.__name__), models[cls])


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shards_dtypes_and_devices(family: ModelFamily, dtype: torch.dtype, tmp_path: Path) -> None:
    cls = dict(family.auto_classes)["AutoModelForSequenceClassification"]
    model = saved(tmp_path, cls, max_shard_size="5KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    for options in ({}, {"device_map": "auto"}, {"device_map": "cpu"}, {"device_map": {"": "cpu"}}):
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=dtype, **options)
        assert_same(loaded, model, dtype)


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_layers_on_disk(family: ModelFamily, tmp_path: Path) -> None:
    model = saved(tmp_path, family.base)
    devices = {name: "disk" if name == family.encoder.split(".")[0] else "cpu" for name, _ in model.named_children()}
    loaded = AutoModel.from_pretrained(tmp_path, device_map=devices, offload_folder=tmp_path / "offloaded").eval()
    assert "meta" in {parameter.device.type for parameter in loaded.parameters()}
    for ours, theirs in zip(loaded(**batch()).to_tuple(), model(**batch()).to_tuple(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_dtype_that_was_saved(tmp_path: Path) -> None:
    model = tiny_model(cls=transformers.BertForMaskedLM).bfloat16()
    ek.compact(model, some_ticket(model)).save_pretrained(tmp_path)
    assert_same(AutoModelForMaskedLM.from_pretrained(tmp_path, dtype="auto"), model, torch.bfloat16)


def test_a_name_of_the_hub(tmp_path: Path) -> None:
    """From its cache, as no network is needed for that."""
    repository = tmp_path / "models--me--small"
    model = saved(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    loaded = AutoModelForSequenceClassification.from_pretrained("me/small", cache_dir=tmp_path, local_files_only=True)
    assert_same(loaded, model)


def without(key: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        weights = load_file(path)
        del weights[key]
        save_file(weights, path, metadata={"format": "pt"})

    return change


def with_weights(**weights: torch.Tensor) -> Callable[[Path], None]:
    return lambda folder: edit_weights(folder, **weights)


def with_config(**fields) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, **fields)


def with_fewer_layers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    kept = {name: config[name][:2] for name in ("kept_heads", "kept_neurons")}
    edit_config(folder, num_hidden_layers=2, **kept)


LAYER = "bert.encoder.layer.1."
FOREIGN = "its config and its weights do not belong together"

#: What is done to the folder -> what the message names.
WRONG = {
    "no tensor": (without(LAYER + "output.dense.bias"), rf"lacks {LAYER}output.dense.bias: {FOREIGN}"),
    "no table": (without("bert.embeddings.LayerNorm.weight"), f"lacks bert.embeddings.LayerNorm.weight: {FOREIGN}"),
    "no head": (without("classifier.weight"), f"lacks classifier.weight: {FOREIGN}"),
    "no pooler": (without("bert.pooler.dense.bias"), f"lacks bert.pooler.dense.bias: {FOREIGN}"),
    "widths": (
        with_config(kept_neurons=["0-3", "0-4", "0-6"]),
        rf"has bert.encoder.layer.0.intermediate.dense.bias of shape \(17,\), which is \(4,\) by its config "
        rf"\(and 8 more\): {FOREIGN}",
    ),
    "heads": (with_config(kept_heads=["0", "1", "2"]), rf"has {LAYER}attention.output.dense.weight of shape"),
    "one tensor": (
        with_weights(**{LAYER + "output.dense.weight": torch.zeros(24, 9)}),
        rf"has {LAYER}output.dense.weight of shape \(24, 9\), which is \(24, 22\) by its config: {FOREIGN}",
    ),
    "layers": (with_config(num_hidden_layers=2), "kept_heads and config.kept_neurons do not fit num_hidden_layers"),
    "fewer layers": (with_fewer_layers, r"has bert.encoder.layer.2.* \(and 15 more\), which a model of its config"),
    "no units": (with_config(kept_heads=None), "must state kept_heads and kept_neurons"),
    "no numbers": (with_config(kept_heads=["a", "0", "1"]), "do not fit num_hidden_layers.*: invalid literal"),
    "too many": (with_config(kept_heads=["0-99999999999", "0", "1"]), "0-99999999999 is kept, of 4 units"),
    "newer": (with_config(compact_format=2), "compact_format is 2, and this version of earlybert_kernels reads 1"),
}  # fmt: skip


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("what", WRONG)
def test_files_that_are_no_model_are_refused(what: str, ignore: bool, tmp_path: Path) -> None:
    change, message = WRONG[what]
    saved(tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        AutoModelForSequenceClassification.from_pretrained(tmp_path, ignore_mismatched_sizes=ignore)
    assert len(str(error.value).splitlines()) == 1


def test_an_entry_that_an_index_lacks_is_named(tmp_path: Path) -> None:
    saved(tmp_path, max_shard_size="5KB")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    gone = index["weight_map"][LAYER + "output.dense.weight"]
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != gone}
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"lacks bert\..*: {FOREIGN}"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


def test_a_new_head_is_none_of_the_checkpoints(tmp_path: Path) -> None:
    """Another task's, or one of another size where that is asked for: as transformers does it."""
    model = saved(tmp_path)
    other = transformers.AutoModelForTokenClassification.from_pretrained(
        tmp_path, num_labels=7, ignore_mismatched_sizes=True
    )
    assert other.classifier.out_features == 7
    with pytest.raises(ValueError, match=r"has classifier.bias of shape \(3,\).*ignore_mismatched_sizes=True makes"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=7)
    wide, found = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key for key, *_ in found["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    for loaded in (other, wide):
        theirs = model.bert.state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in loaded.bert.state_dict().items())


def test_a_pooler_is_optional_for_a_base_model(tmp_path: Path) -> None:
    saved(tmp_path, transformers.BertForMaskedLM)
    assert AutoModel.from_pretrained(tmp_path).pooler is not None


def test_a_config_of_before_formats_had_a_number_is_read(tmp_path: Path) -> None:
    model = saved(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields.pop("compact_format") == 1
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert AutoConfig.from_pretrained(tmp_path).compact_format == 1
    assert_same(AutoModelForSequenceClassification.from_pretrained(tmp_path), model)


def test_importing_loads_no_family_and_a_checkpoint_its_own(tmp_path: Path) -> None:
    saved(tmp_path, transformers.AlbertModel)
    code = f"""
import sys, earlybert_kernels
from transformers import AutoModel
families = lambda: [n for n in sys.modules if ".modeling_" in n and n.split(".")[:2] == ["transformers", "models"]]
print(*families())
print(type(AutoModel.from_pretrained({str(tmp_path)!r})).__name__, *families())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    auto, albert = (f"transformers.models.{name}.modeling_{name}" for name in ("auto", "albert"))
    assert done.stdout.splitlines() == [auto, f"CompactAlbertModel {auto} {albert}"]
