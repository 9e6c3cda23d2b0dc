"""Compact BERT: a BERT whose layers keep different numbers of heads and neurons, as transformers classes.

Importing this module registers them, so that `save_pretrained` and `AutoModelFor....from_pretrained` work for
compact models as for any other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import transformers
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertTokenizer
from transformers.models.bert import modeling_bert as hf
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from ..ticket import Ticket


@strict
class CompactBertConfig(BertConfig):
    """The config of a compact BERT: that of the dense model, and which of its units are left.

    `num_attention_heads`, `hidden_size` and `intermediate_size` are the dense model's.

    Attributes:
        kept_heads, kept_neurons: what each layer keeps, as index ranges ("0-3,6"), which stay readable where
            a list of thousands of numbers would not.
    """

    model_type = "compact_bert"

    kept_heads: list[str] | None = None
    kept_neurons: list[str] | None = None

    @property
    def ticket(self) -> Ticket:
        """The kept units as indices of the dense model.

        Raises:
            ValueError: the config does not state them.
        """
        if self.kept_heads is None or self.kept_neurons is None:
            raise ValueError("the config of a compact BERT must state kept_heads and kept_neurons")
        return Ticket(map(_from_ranges, self.kept_heads), map(_from_ranges, self.kept_neurons))

    @classmethod
    def of(cls, config: BertConfig, ticket: Ticket) -> CompactBertConfig:
        """`config` with the units of `ticket`, which are indices of the model as `config` has it now."""
        compact = copy.deepcopy(config)
        if isinstance(config, cls):
            ticket = _compose(config.ticket, ticket)
        else:
            compact.__class__ = cls  # so that what `config` holds outside its fields stays
        compact.kept_heads = [_to_ranges(units) for units in ticket.heads]
        compact.kept_neurons = [_to_ranges(units) for units in ticket.neurons]
        return compact

    def dense(self) -> BertConfig:
        """The config of the dense model."""
        config = copy.deepcopy(self)
        del config.kept_heads, config.kept_neurons
        config.__class__, config.architectures = BertConfig, None
        return config


class _CompactBert:
    """Builds the dense architecture, then cuts every layer to the widths that the config states."""

    config_class = CompactBertConfig

    def __init__(self, config: CompactBertConfig, *args, **kwargs) -> None:
        super().__init__(config, *args, **kwargs)
        from ..compact import cut  # needs the adapters, which need this module

        # Which units stay is a matter of the weights, that follow; here only their number counts.
        ticket = config.ticket
        cut(self, Ticket(*([range(len(u)) for u in units] for units in (ticket.heads, ticket.neurons))))
        _set_classes(self)


class _Classes:
    """The compact class of every BERT class, and back."""

    def __init__(self) -> None:
        self._compact: dict[type, type] = {}
        self._stock: dict[type, type] = {}

    def __iter__(self) -> Iterator[type]:
        """The stock classes that have a compact one."""
        return iter(self._compact)

    def add(self, stock: type) -> type:
        name = "Compact" + stock.__name__
        docstring = f"`transformers.{stock.__name__}` with heads and neurons removed layer by layer."
        compact = type(name, (_CompactBert, stock), {"__module__": __name__, "__doc__": docstring})
        self._compact[stock], self._stock[compact] = compact, stock
        # transformers looks up by class name what a model can record (output_hidden_states), and writes it down
        # when a model of the class is built; ours are also made by changing the class of a stock one.
        dict.__setitem__(_CAN_RECORD_REGISTRY, str(compact), stock._can_record_outputs)
        return compact

    def compact(self, cls: type) -> type | None:
        """The compact class of a stock (or compact) class, or None if there is none."""
        return cls if cls in self._stock else self._compact.get(cls)

    def stock(self, cls: type) -> type:
        """The stock class of a compact class; any other class is its own."""
        return self._stock.get(cls, cls)


COMPACT_CLASSES = _Classes()

_AUTO_CLASSES = {
    "AutoModel": hf.BertModel,
    "AutoModelForPreTraining": hf.BertForPreTraining,
    "AutoModelForCausalLM": hf.BertLMHeadModel,
    "AutoModelForMaskedLM": hf.BertForMaskedLM,
    "AutoModelForNextSentencePrediction": hf.BertForNextSentencePrediction,
    "AutoModelForSequenceClassification": hf.BertForSequenceClassification,
    "AutoModelForMultipleChoice": hf.BertForMultipleChoice,
    "AutoModelForTokenClassification": hf.BertForTokenClassification,
    "AutoModelForQuestionAnswering": hf.BertForQuestionAnswering,
}

AutoConfig.register(CompactBertConfig.model_type, CompactBertConfig, exist_ok=True)
AutoTokenizer.register(CompactBertConfig, fast_tokenizer_class=BertTokenizer, exist_ok=True)
for _auto, _stock in _AUTO_CLASSES.items():
    _class = COMPACT_CLASSES.add(_stock)
    globals()[_class.__name__] = _class  # by name, as pickle and transformers look classes up
    getattr(transformers, _auto).register(CompactBertConfig, _class, exist_ok=True)


def set_compact(model: nn.Module, config: BertConfig, ticket: Ticket) -> None:
    """Makes every BERT class in `model` its compact one, with a config that states the kept units."""
    compact_config = CompactBertConfig.of(config, ticket)
    for module in model.modules():
        if getattr(module, "config", None) is config:
            module.config = compact_config
    _set_classes(model)


def _set_classes(model: nn.Module) -> None:
    for module in model.modules():
        if (compact := COMPACT_CLASSES.compact(type(module))) is not None:
            module.__class__ = compact


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


def _from_ranges(text: str) -> list[int]:
    """`"0-2,5"` -> `[0, 1, 2, 5]`."""
    units: list[int] = []
    for run in text.split(","):
        first, _, last = run.partition("-")
        units.extend(range(int(first), int(last or first) + 1))
    return units
