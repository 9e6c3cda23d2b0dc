"""Checkpoints that others have pruned: with `prune_heads` of transformers 4, or by setting weights to zero."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from .compact import compact
from .models import family_of_type, layer_parts
from .models.compact_config import COMPACT_CONFIGS, CompactConfig
from .nn import LayerParts
from .ticket import Ticket


def load_pruned(
    auto_class: Any, folder_or_name: str | os.PathLike, *, drop_zero_units: bool = False, **kwargs: Any
) -> PreTrainedModel:
    """A checkpoint whose config has `pruned_heads`, as transformers 4 wrote it, as a compact model.

    transformers 5 builds all heads of such a config, which the weights do not fit. A compact model has those that are
    left; it computes what it did in transformers 4, and is saved, reloaded and converted as any other.

    Args:
        auto_class: the class of transformers that loads it for its task, `AutoModelForSequenceClassification`, say.
        folder_or_name: a folder or a model of the hub.
        drop_zero_units: drop feed-forward neurons and heads that only ever add zero, also of a checkpoint without
            `pruned_heads`: neurons whose output weights are all zero, or whose input weights and bias are (or, of gated
            units, those of the factor); heads whose output weights are all zero, or whose value weights and bias are.
            A layer keeps one of each at least.
        kwargs: for the class's `from_pretrained`. `ignore_mismatched_sizes=True` allows a head of another size,
            nothing else.

    Raises:
        ValueError: the config has no `pruned_heads` and zeros are to stay, or they are not heads of its layers, or a
            layer is left without; or the weights are not those of the heads that are left.
        TypeError: the model's family has no adapter.
    """
    names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "trust_remote_code")
    config: Any = AutoConfig.from_pretrained(folder_or_name, **{n: v for n, v in kwargs.items() if n in names})
    if not drop_zero_units and not getattr(config, "pruned_heads", None):
        raise ValueError(f"the config of {folder_or_name} has no pruned_heads: {auto_class.__name__} loads it")
    model = auto_class.from_pretrained(folder_or_name, config=without_pruned_heads(config), **kwargs)
    return compact(model, _without_zeros(model)) if drop_zero_units else model


def without_pruned_heads(config: PreTrainedConfig) -> CompactConfig:
    """The config of a compact model that has the heads which `config.pruned_heads` leaves; of a compact one itself.

    Raises:
        ValueError: they are not heads of its layers, or a layer is left without.
        TypeError: the model's family has no adapter.
    """
    family = family_of_type(config.model_type)
    if isinstance(config, CompactConfig):
        return config
    heads_of, neurons_of = family.units(config)
    heads = _kept(getattr(config, "pruned_heads", None) or {}, heads_of)
    ticket = Ticket(heads, map(range, neurons_of), heads_of=heads_of, neurons_of=neurons_of)
    left = COMPACT_CONFIGS[family.model_type].of(config, ticket)
    vars(left).pop("pruned_heads", None)
    return left


def _kept(pruned: Mapping[int | str, Iterable[int]], heads_of: list[int]) -> list[list[int]]:
    """The heads that each layer has left, in the order in which `prune_heads` leaves them."""
    gone = {int(layer): set(heads) for layer, heads in pruned.items()}  # JSON has the numbers as text
    for layer, heads in gone.items():
        if not 0 <= layer < len(heads_of) or not heads <= set(range(heads_of[layer])):
            raise ValueError(f"config.pruned_heads names heads {sorted(heads)} of layer {layer}, which the model lacks")
    return [[head for head in range(count) if head not in gone.get(layer, ())] for layer, count in enumerate(heads_of)]


@torch.no_grad()
def _without_zeros(model: PreTrainedModel) -> Ticket:
    """The units that can add something to the residual stream."""
    family = family_of_type(model.config.model_type)
    activation = ACT2FN[getattr(model.config, family.activation_field)]
    silent = not activation(torch.zeros(1)).any()  # what a neuron is that gets nothing
    heads, neurons = [], []
    for _, parts in layer_parts(model):
        fed = _rows_with_weights(parts, "neurons")  # of the input, and behind it of a gated unit's factor
        neurons.append(_indices(parts.output.weight.any(0) & (fed if silent else fed[1:]).all(0)))
        by_head = (parts.num_heads, parts.head_size)
        read = parts.attention_output.weight.any(0).view(by_head).any(1)
        *_, value = _rows_with_weights(parts, "heads")
        heads.append(_indices(read & value.view(by_head).any(1)))
    return Ticket(heads, neurons)


def _rows_with_weights(parts: LayerParts, unit: Literal["heads", "neurons"]) -> Tensor:
    """Which rows that make the units have weights or a bias: for each time that all units stand there, their rows."""
    made = [p for p in parts.unit_parameters() if p.unit == unit and p.dim == 0 and p.name == "weight"]
    rows = []
    for linear, times in ((p.linear, p.times) for p in made):
        own = linear.weight.any(1) if linear.bias is None else linear.weight.any(1) | linear.bias.bool()
        rows.append(own.view(times, -1))
    return torch.cat(rows)


def _indices(kept: Tensor) -> list[int]:
    return kept.nonzero().flatten().tolist() or [0]
