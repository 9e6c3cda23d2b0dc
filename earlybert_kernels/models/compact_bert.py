"""Compact BERT: a BERT whose layers keep different numbers of heads and neurons, as transformers classes.

Importing this module registers them, so that `save_pretrained` and `AutoModelFor....from_pretrained` work for
compact models as for any other.
"""

from __future__ import annotations

import copy
import functools
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import transformers
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertTokenizer
from transformers import initialization as init
from transformers.models.auto import modeling_auto
from transformers.models.bert import modeling_bert as hf
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from ..ticket import Ticket

_README = """\
---
library_name: transformers
---

# {name}

A BERT whose layers keep different numbers of heads and feed-forward neurons, saved by the Python package
`earlybert-kernels`. Import it before loading, so that transformers knows the model type `compact_bert`:

```python
import earlybert_kernels
from transformers import AutoModel  # or the AutoModelFor... of the model's task

model = AutoModel.from_pretrained("this folder")
```

`earlybert_kernels.to_stock(model)` makes a plain BERT of it, with equal outputs, that needs no such import.
"""


@strict
class CompactBertConfig(BertConfig):
    """The config of a compact BERT: that of the dense model, and which of its units are left.

    `num_attention_heads`, `hidden_size` and `intermediate_size` are the dense model's.

    Attributes:
        kept_heads, kept_neurons: what each layer keeps, as index ranges ("0-3,6"), which stay readable where
            a list of thousands of numbers would not.
        gated: whether the model has the gates of a search, which are then among the weights.
    """

    model_type = "compact_bert"

    kept_heads: list[str] | None = None
    kept_neurons: list[str] | None = None
    gated: bool = False

    @property
    def ticket(self) -> Ticket:
        """The kept units as indices of the dense model.

        Raises:
            ValueError: the config does not state them, or not those of a model of its layers and sizes.
        """
        if self.kept_heads is None or self.kept_neurons is None:
            raise ValueError("the config of a compact BERT must state kept_heads and kept_neurons")
        sizes = {
            "heads_of": [self.num_attention_heads] * self.num_hidden_layers,
            "neurons_of": [self.intermediate_size] * self.num_hidden_layers,
        }
        try:
            return Ticket(map(_from_ranges, self.kept_heads), map(_from_ranges, self.kept_neurons), **sizes)
        except ValueError as error:
            raise ValueError(
                "config.kept_heads and config.kept_neurons do not fit num_hidden_layers, num_attention_heads and "
                f"intermediate_size: {error}"
            ) from error

    @classmethod
    def of(cls, config: BertConfig, ticket: Ticket) -> CompactBertConfig:
        """`config` with the units of `ticket`, which are indices of the model as `config` has it now."""
        compact = copy.deepcopy(config)
        if isinstance(config, cls):
            ticket = _compose(config.ticket, ticket)
        else:
            compact.__class__ = cls  # so that what `config` holds outside its fields stays
            compact.gated = False
        compact.kept_heads = [_to_ranges(units) for units in ticket.heads]
        compact.kept_neurons = [_to_ranges(units) for units in ticket.neurons]
        return compact

    def dense(self) -> BertConfig:
        """The config of the dense model."""
        config = copy.deepcopy(self)
        del config.kept_heads, config.kept_neurons, config.gated
        config.__class__, config.architectures = BertConfig, None
        return config


class _CompactBert:
    """Builds the dense architecture, then cuts every layer to the widths that the config states, and adds gates."""

    config_class = CompactBertConfig

    def __init__(self, config: CompactBertConfig, *args, **kwargs) -> None:
        super().__init__(config, *args, **kwargs)
        from ..compact import cut  # these need the adapters, which need this module
        from ..gates import enable_gates

        # Which units stay is a matter of the weights, that follow; here only their number counts.
        ticket = config.ticket
        cut(self, Ticket(*([range(len(u)) for u in units] for units in (ticket.heads, ticket.neurons))))
        _set_classes(self)
        if config.gated:
            enable_gates(self)
            self._keep_in_fp32_modules_strict |= {"head_gates", "neuron_gates"}  # half precision would lose their steps

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """As transformers saves any model; beside it a README.md, where there is none, that says how to load it.

        Raises:
            ValueError: the model and its config do not agree, so that it could not be loaded again.
        """
        from .bert_checks import check_agreement  # needs this module

        base = self.base_model
        check_agreement(self, base)
        gated = [getattr(layer, "head_gates", None) is not None for layer in base.encoder.layer]
        if len(set(gated)) > 1:
            raise ValueError(
                f"layer {gated.index(False)} has no gates and others have: call earlybert_kernels.enable_gates or "
                "remove_gates before saving"
            )
        self.config.gated = any(gated)
        super().save_pretrained(save_directory, *args, **kwargs)
        config, readme = (Path(save_directory, name) for name in ("config.json", "README.md"))
        if not config.exists():  # another process writes the folder, or it is no folder
            return
        for weights in Path(save_directory).glob("*.safetensors"):
            shutil.copymode(config, weights)  # safetensors lets nobody else read its files, whatever the umask
        if not readme.exists():
            readme.write_text(_README.format(name=type(self).__name__), encoding="utf-8")

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        for name in ("head_gates", "neuron_gates"):  # where the weights that are loaded lack them
            if getattr(module, name, None) is not None:
                init.ones_(getattr(module, name))


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
# Some things transformers asks of a class by its name: whether a Trainer that smooths labels shifts them, which
# pipelines take it.
for _name, _class_names in vars(modeling_auto).items():
    if re.fullmatch("MODEL(_FOR_.*)?_MAPPING_NAMES", _name) and "bert" in _class_names:
        _class = COMPACT_CLASSES.compact(getattr(hf, _class_names["bert"]))
        _class_names[CompactBertConfig.model_type] = _class.__name__


def set_compact(model: nn.Module, config: BertConfig, ticket: Ticket) -> None:
    """Makes every BERT class in `model` its compact one, with a config that states the kept units."""
    compact_config = CompactBertConfig.of(config, ticket)
    for module in model.modules():
        if getattr(module, "config", None) is config:
            module.config = compact_config
    _set_classes(model)


def set_gated(model: nn.Module, gated: bool) -> None:
    """Makes `save_pretrained` of every BERT class in `model` write its gates so that they are loaded again."""
    for module in model.modules():
        if isinstance(module, hf.BertPreTrainedModel):
            if isinstance(module, _CompactBert):
                module.config.gated = gated
            elif gated:
                module.save_pretrained = functools.partial(_save_gated, module)
            else:
                vars(module).pop("save_pretrained", None)


def _save_gated(model: nn.Module, save_directory: str | os.PathLike, *args, **kwargs) -> None:
    """`save_pretrained` of a gated stock model, whose class knows no gates: as a compact one that keeps all units.

    Raises:
        ValueError: the model and its config do not agree, so that it could not be loaded again.
        TypeError: the class has no compact one.
    """
    compact = COMPACT_CLASSES.compact(type(model))
    if compact is None:
        raise TypeError(
            f"{type(model).__name__} has gates, which from_pretrained would not load: save model.state_dict() with "
            "torch.save, or call earlybert_kernels.remove_gates(model) first, which folds them into the weights"
        )
    config = model.config
    units = ([range(n)] * config.num_hidden_layers for n in (config.num_attention_heads, config.intermediate_size))
    twin = copy.copy(model)  # shares all modules and Parameters
    del twin.save_pretrained
    twin.__class__, twin.config = compact, CompactBertConfig.of(config, Ticket(*units))
    twin.save_pretrained(save_directory, *args, **kwargs)


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
