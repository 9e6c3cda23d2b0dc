"""Checkpoints that others have pruned, with `prune_heads` of transformers 4."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import AutoConfig, PreTrainedModel

from .models import family_of_type
from .models.compact_config import COMPACT_CONFIGS
from .ticket import Ticket


def load_pruned(auto_class: Any, folder_or_name: str | os.PathLike, **kwargs: Any) -> PreTrainedModel:
    """A checkpoint whose config has `pruned_heads`, as transformers 4 wrote it, as a compact model.

    transformers 5 builds all heads of such a config, which the weights do not fit. A compact model has those that are
    left; it computes what it did in transformers 4, and is saved, reloaded and converted as any other.

    Args:
        auto_class: the class of transformers that loads it for its task, `AutoModelForSequenceClassification`, say.
        folder_or_name: a folder or a model of the hub.
        kwargs: for the class's `from_pretrained`.

    Raises:
        ValueError: the config has no `pruned_heads`, or they are not heads of its layers, or a layer is left without.
        TypeError: the model's family has no adapter.
        RuntimeError: the weights are not those of the heads that are left (see transformers).
    """
    names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "trust_remote_code")
    config: Any = AutoConfig.from_pretrained(folder_or_name, **{n: v for n, v in kwargs.items() if n in names})
    family = family_of_type(config.model_type)
    pruned = getattr(config, "pruned_heads", None)
    if not pruned:
        raise ValueError(f"the config of {folder_or_name} has no pruned_heads: {auto_class.__name__} loads it")
    del config.pruned_heads
    heads_of, neurons_of = family.units(config)
    ticket = Ticket(_kept(pruned, heads_of), map(range, neurons_of), heads_of=heads_of, neurons_of=neurons_of)
    compact = COMPACT_CONFIGS[family.model_type].of(config, ticket)
    return auto_class.from_pretrained(folder_or_name, config=compact, **kwargs)


def _kept(pruned: Mapping[int | str, Iterable[int]], heads_of: list[int]) -> list[list[int]]:
    """The heads that each layer has left, in the order in which `prune_heads` leaves them."""
    gone = {int(layer): set(heads) for layer, heads in pruned.items()}  # JSON has the numbers as text
    for layer, heads in gone.items():
        if not 0 <= layer < len(heads_of) or not heads <= set(range(heads_of[layer])):
            raise ValueError(f"config.pruned_heads names heads {sorted(heads)} of layer {layer}, which the model lacks")
    return [[head for head in range(count) if head not in gone.get(layer, ())] for layer, count in enumerate(heads_of)]
