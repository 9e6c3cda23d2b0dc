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
from pathlib import Path

import transformers
from torch import nn
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertTokenizer
from transformers import initialization as init
from transformers.models.auto import modeling_auto
from transformers.models.bert import modeling_bert as hf

from ..nn.cut import cut
from ..nn.layer_gates import add_gates
from ..ticket import Ticket
from .bert_checks import check_agreement
from .bert_layers import parts, resized
from .compact_classes import COMPACT_CLASSES
from .compact_config import CompactBertConfig

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


class _CompactBert:
    """Builds the dense architecture, then cuts every layer to the widths that the config states, and adds gates."""

    config_class = CompactBertConfig

    def __init__(self, config: CompactBertConfig, *args, **kwargs) -> None:
        super().__init__(config, *args, **kwargs)
        layers = [(layer, parts(layer, f"encoder.layer.{i}")) for i, layer in enumerate(self.base_model.encoder.layer)]
        # Which units stay is a matter of the weights, that follow; here only their number counts.
        ticket = config.ticket
        cut(layers, Ticket(*([range(len(u)) for u in units] for units in (ticket.heads, ticket.neurons))), resized)
        _set_classes(self)
        if config.gated:
            for layer, layer_parts in layers:
                add_gates(layer, layer_parts)
            self._keep_in_fp32_modules_strict |= {"head_gates", "neuron_gates"}  # half precision would lose their steps

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """As transformers saves any model; beside it a README.md, where there is none, that says how to load it.

        Raises:
            ValueError: the model and its config do not agree, so that it could not be loaded again.
        """
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


def _make_compact(stock: type) -> type:
    docstring = f"`transformers.{stock.__name__}` with heads and neurons removed layer by layer."
    return type("Compact" + stock.__name__, (_CompactBert, stock), {"__module__": __name__, "__doc__": docstring})


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
    _class = _make_compact(_stock)
    COMPACT_CLASSES.add(_stock, _class)
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
