"""The config of a compact model: that of the dense model, and which of its units each layer keeps."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, PreTrainedConfig

from ..ticket import Ticket
from .family import ModelFamily, compact_type
from .registry import MODEL_TYPES, family_of_type

_FORMAT = 1

# A mixin: it stands before the config of a family, which is one of these.
if TYPE_CHECKING:
    _Config = PreTrainedConfig
else:
    _Config = object


@dataclass(init=False, repr=False, eq=False, kw_only=True)
class CompactConfig(_Config):
    """What the config of a compact model has beside the fields of the dense one's, which go on saying the dense sizes.

    Attributes:
        kept_heads, kept_neurons: what each layer keeps, as index ranges ("0-3,6"), which stay readable where
            a list of thousands of numbers would not.
        gated: whether the model has the gates of a search, which are then among the weights.
        compact_format: the version of what is written; another one is not read.
    """

    kept_heads: list[str] | None = None
    kept_neurons: list[str] | None = None
    gated: bool = False
    compact_format: int = _FORMAT

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """A config, before which the family is loaded: only then does transformers know models for it."""
        family_of_type(cls.model_type)
        return super().__new__(cls)

    @property
    def family(self) -> ModelFamily:
        """The family of the model."""
        return family_of_type(self.model_type)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A config from what config.json holds.

        Raises:
            ValueError: it is of another format than this version reads.
        """
        if (written := config_dict.get("compact_format", _FORMAT)) != _FORMAT:
            raise ValueError(
                f"the config's compact_format is {written!r}, and this version of earlybert_kernels reads {_FORMAT}: "
                "install the one that wrote it, or a newer one"
            )
        return super().from_dict(config_dict, **kwargs)

    @property
    def ticket(self) -> Ticket:
        """The kept units as indices of the dense model.

        Raises:
            ValueError: the config does not state them, or not those of a model of its layers and sizes.
        """
        if self.kept_heads is None or self.kept_neurons is None:
            raise ValueError(f"the config of a compact {self.family.name} must state kept_heads and kept_neurons")
        heads_of, neurons_of = self.family.units(self)
        try:
            heads, neurons = (
                [_from_ranges(str(text), max(units, default=0)) for text in kept]
                for kept, units in ((self.kept_heads, heads_of), (self.kept_neurons, neurons_of))
            )
            return Ticket(heads, neurons, heads_of=heads_of, neurons_of=neurons_of)
        except ValueError as error:
            raise ValueError(
                "config.kept_heads and config.kept_neurons do not fit num_hidden_layers, num_attention_heads and "
                f"{self.family.neurons_field}: {error}"
            ) from error

    @classmethod
    def of(cls, config: PreTrainedConfig, ticket: Ticket) -> CompactConfig:
        """`config` with the units of `ticket`, which are indices of the model as `config` has it now."""
        compact: Any = copy.deepcopy(config)
        if isinstance(config, cls):
            ticket = _compose(config.ticket, ticket)
        else:
            compact.__class__ = cls  # so that what `config` holds outside its fields stays
            compact.gated, compact.compact_format = False, _FORMAT
        compact.kept_heads = [_to_ranges(units) for units in ticket.heads]
        compact.kept_neurons = [_to_ranges(units) for units in ticket.neurons]
        return compact

    def dense(self) -> PreTrainedConfig:
        """The config of the dense model."""
        config: Any = copy.deepcopy(self)
        del config.kept_heads, config.kept_neurons, config.gated, config.compact_format
        config.__class__, config.architectures = self.family.config, None
        return config


def _compose(first: Ticket, second: Ticket) -> Ticket:
    """The units that `second` keeps of those that `first` kept, as indices of the dense model."""
    heads, neurons = (
        [[kept[i] for i in units] for kept, units in zip(before, after, strict=True)]
        for before, after in ((first.heads, second.heads), (first.neurons, second.neurons))
    )
    return Ticket(heads, neurons)


def _to_ranges(units: list[int]) -> str:
    """`[0, 1, 2, 5]` -> `"0-2,5"`."""
    runs: list[list[int]] = []
    for unit in units:
        if runs and unit == runs[-1][1] + 1:
            runs[-1][1] = unit
        else:
            runs.append([unit, unit])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _from_ranges(text: str, count: int) -> list[int]:
    """`"0-2,5"` -> `[0, 1, 2, 5]`, of `count` units."""
    units: list[int] = []
    for run in text.split(","):
        first, _, last = run.partition("-")
        if int(last or first) >= count:  # a number that is far too large would fill the memory
            raise ValueError(f"{run} is kept, of {count} units")
        units.extend(range(int(first), int(last or first) + 1))
    return units


def _make(model_type: str) -> type[CompactConfig]:
    stock = CONFIG_MAPPING[model_type]
    members = {
        "__module__": __name__,
        "__doc__": f"`transformers.{stock.__name__}` of the dense model, and which of its units are left.",
        "model_type": compact_type(model_type),
    }
    return strict(type(f"Compact{stock.__name__}", (CompactConfig, stock), members))


#: The class of every family, by the model type of stock models: `CompactBertConfig`.
COMPACT_CONFIGS = {model_type: _make(model_type) for model_type in MODEL_TYPES}
globals().update((cls.__name__, cls) for cls in COMPACT_CONFIGS.values())  # by name, as pickle looks classes up
