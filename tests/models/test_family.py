"""What every family says of itself, against transformers' own models."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest
import torch
import transformers
from transformers.models.auto import modeling_auto

from earlybert_kernels.models import families
from earlybert_kernels.models.family import ModelFamily
from earlybert_kernels.models.layers import parts
from tests.helpers.family_checks import TABLE, row

pytestmark = pytest.mark.parametrize("family", families(), ids=lambda family: family.name)


def test_every_class_that_transformers_loads_by_task_is_there(family: ModelFamily) -> None:
    loaded = set()
    for name, class_names in vars(modeling_auto).items():
        if re.fullmatch("MODEL(_FOR_.*)?_MAPPING_NAMES", name) and family.model_type in class_names:
            loaded.add(class_names[family.model_type])
    assert loaded == {cls.__name__ for _, cls in family.auto_classes}


def test_every_class_is_loaded_by_the_auto_class_that_is_named(family: ModelFamily) -> None:
    for auto_class, cls in family.auto_classes:
        assert getattr(transformers, auto_class)._model_mapping[family.config] is cls, auto_class


def test_paths_and_fields_are_those_of_a_stock_model(family: ModelFamily) -> None:
    config = family.config()
    with torch.device("meta"):
        base = family.base(config)
    for path, layer in family.named_layers_of(base):
        assert base.get_submodule(path) is layer
        found = parts(family, layer, path)
        named = [field.name for field in dataclasses.fields(found)]
        modules = [name for name in named if isinstance(getattr(found, name), torch.nn.Module)]
        assert sorted(modules) == sorted(family.layer.parts)
        assert (found.num_heads, found.num_neurons) == (config.num_attention_heads, family.neurons(config))
        assert found.num_heads * found.head_size == config.hidden_size
        for name, count in ((family.layer.heads, found.num_heads), (family.layer.width, config.hidden_size)):
            assert name is None or getattr(found.self_attention, name) == count
    assert all(hasattr(config, field) for field in family.size_fields.values())
    for head in family.heads:
        if head.decoder is not None:
            with torch.device("meta"):
                model = head.stock(config)
            assert model.get_submodule(head.decoder.linear) is model.get_output_embeddings()


def test_a_family_is_a_value_of_few_lines(family: ModelFamily) -> None:
    module = importlib.import_module(f"earlybert_kernels.models.{family.model_type.replace('-', '_')}")
    assert module.FAMILY is family
    assert len(Path(module.__file__).read_text(encoding="utf-8").splitlines()) < 80


def test_the_page_of_families_says_what_is_so(family: ModelFamily) -> None:
    assert row(family) in TABLE.read_text(encoding="utf-8").splitlines()
