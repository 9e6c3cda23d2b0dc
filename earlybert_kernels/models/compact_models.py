"""Compact models: transformers classes whose layers keep different numbers of heads and neurons.

Importing this module registers their configs, so that `save_pretrained` and `AutoModelFor....from_pretrained` work for
compact models as for any other. The classes of a family are made when it is loaded, which making a config does.
"""

from __future__ import annotations

import copy
import functools
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.models.auto import modeling_auto

from ..nn.cut import cut
from ..nn.layer_gates import add_gates
from ..ticket import Ticket
from .agreement import build_like, check_agreement
from .compact_classes import COMPACT_CLASSES
from .compact_config import COMPACT_CONFIGS, CompactConfig
from .family import ModelFamily
from .layers import parts, resized
from .loaded import check_loaded
from .registry import families, family_of, when_loaded

_README = """\
---
library_name: transformers
---

# {name}

{family} with layers that keep different numbers of heads and feed-forward neurons, saved by the Python package
`earlybert-kernels`. Import it before loading, so that transformers knows the model type `{model_type}`:

```python
import earlybert_kernels
from transformers import AutoModel  # or the AutoModelFor... of the model's task

model = AutoModel.from_pretrained("this folder")
```

`earlybert_kernels.to_stock(model)` makes a plain {family} of it, with equal outputs, that needs no such import.
"""


# A mixin: it stands before a class of models, which is one of these.
if TYPE_CHECKING:
    _Model = PreTrainedModel
else:
    _Model = object


class _CompactModel(_Model):
    """Builds the dense architecture, then cuts every layer to the widths that the config states, and adds gates."""

    config: CompactConfig

    def __init__(self, config: CompactConfig, *args: Any, **kwargs: Any) -> None:
        ticket = config.ticket  # which is refused if it does not fit, before anything is built
        super().__init__(config, *args, **kwargs)
        family = config.family
        layers = [(layer, parts(family, layer, name)) for name, layer in family.named_layers_of(self.base_model)]
        # Which units stay is a matter of the weights, that follow; here only their number counts.
        kept = Ticket(*([range(len(u)) for u in units] for units in (ticket.heads, ticket.neurons)))
        cut(layers, kept, functools.partial(resized, family))
        _set_classes(self)
        if config.gated:
            for layer, layer_parts in layers:
                add_gates(layer, layer_parts)
            # Half precision would lose their steps.
            wide = self._keep_in_fp32_modules_strict or ()
            self._keep_in_fp32_modules_strict = {*wide, "head_gates", "neuron_gates"}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers loads any model, but with no weight at random that the checkpoint should have.

        Raises:
            ValueError: the weights are not those of the config; see `check_loaded`.
        """
        other_head, info = (kwargs.pop(name, False) for name in ("ignore_mismatched_sizes", "output_loading_info"))
        # All that differs is let through, and named here.
        kwargs |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model, found = loaded
        check_loaded(model, found, pretrained_model_name_or_path, other_head=other_head)
        return loaded if info else model

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As transformers saves any model; beside it a README.md, where there is none, that says how to load it.

        Raises:
            ValueError: the model and its config do not agree, so that it could not be loaded again.
        """
        base: Any = self.base_model
        family = self.config.family
        check_agreement(family, self, base)
        gated = [getattr(layer, "head_gates", None) is not None for layer in family.layers_of(base)]
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
            names = {"name": type(self).__name__, "family": family.name, "model_type": family.compact_type}
            readme.write_text(_README.format(**names), encoding="utf-8")

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        for name in ("head_gates", "neuron_gates"):  # where the weights that are loaded lack them
            if getattr(module, name, None) is not None:
                init.ones_(getattr(module, name))


def _register(family: ModelFamily) -> None:
    """Makes a compact class of every class of the family, and tells transformers of them."""
    config_class = COMPACT_CONFIGS[family.model_type]
    AutoTokenizer.register(config_class, fast_tokenizer_class=family.tokenizer, exist_ok=True)
    for _, stock in family.auto_classes:
        docstring = f"`transformers.{stock.__name__}` with heads and neurons removed layer by layer."
        members = {"__module__": __name__, "__doc__": docstring, "config_class": config_class}
        compact = type(f"Compact{stock.__name__}", (_CompactModel, stock), members)
        COMPACT_CLASSES.add(stock, compact)
        globals()[compact.__name__] = compact  # by name, as pickle and transformers look classes up
    auto: Any
    for name, auto in vars(modeling_auto).items():  # several load one class
        if name.startswith("AutoModel"):
            known = COMPACT_CLASSES.compact(auto._model_mapping.get(family.config, None))
            if known is not None:
                auto.register(config_class, known, exist_ok=True)
    # Some things transformers asks of a class by its name: whether a Trainer that smooths labels shifts them, which
    # pipelines take it.
    for name, class_names in vars(modeling_auto).items():
        if re.fullmatch("MODEL(_FOR_.*)?_MAPPING_NAMES", name) and family.model_type in class_names:
            stock = getattr(transformers, class_names[family.model_type])
            if (compact_class := COMPACT_CLASSES.compact(stock)) is not None:
                class_names[family.compact_type] = compact_class.__name__


def __getattr__(name: str) -> Any:
    """A compact class by its name, as pickle looks it up in a process that has no model of the family yet."""
    if name.startswith("Compact"):
        families()
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


for _config_class in COMPACT_CONFIGS.values():
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)
when_loaded(_register)


def check_compactable(family: ModelFamily, model: nn.Module) -> None:
    """Raises TypeError if a transformers class in the model has no compact counterpart to be saved and loaded as."""
    for module in model.modules():
        if isinstance(module, family.pretrained) and COMPACT_CLASSES.compact(type(module)) is None:
            raise TypeError(
                f"{type(module).__name__} has no compact class, so a compact one could not be loaded again; "
                f"compact takes {', '.join(sorted(cls.__name__ for _, cls in family.auto_classes))}"
            )


def dense_ticket(family: ModelFamily, config: PreTrainedConfig) -> Ticket:
    """The units that a model of this config has, as indices of the dense model it came from."""
    if isinstance(config, CompactConfig):
        return config.ticket
    return Ticket(*(map(range, units) for units in family.units(config)))


def dense_stock(family: ModelFamily, model: nn.Module, config: PreTrainedConfig) -> PreTrainedModel:
    """A new, untrained model of the stock class of `model` and of the dense shapes of its base model's config.

    Raises:
        TypeError: `model` is not a transformers model.
    """
    if not isinstance(model, family.pretrained):
        raise TypeError(f"{type(model).__name__} is not a transformers model; call this on the {family.name} inside it")
    dense = config.dense() if isinstance(config, CompactConfig) else copy.deepcopy(config)
    return build_like(family, model, COMPACT_CLASSES.stock(type(model)), dense)


def set_compact(family: ModelFamily, model: nn.Module, config: PreTrainedConfig, ticket: Ticket) -> None:
    """Makes every class of the family in `model` its compact one, with a config that states the kept units."""
    compact_config = COMPACT_CONFIGS[family.model_type].of(config, ticket)
    for module in model.modules():
        if getattr(module, "config", None) is config:
            vars(module)["config"] = compact_config
    _set_classes(model)


def set_gated(family: ModelFamily, model: nn.Module, gated: bool) -> None:
    """Makes `save_pretrained` of every class of the family in `model` write its gates so that they are loaded again."""
    for module in model.modules():
        if isinstance(module, family.pretrained):
            if isinstance(module, _CompactModel):
                module.config.gated = gated
            elif gated:
                vars(module)["save_pretrained"] = functools.partial(_save_gated, module)
            else:
                vars(module).pop("save_pretrained", None)


def _save_gated(model: PreTrainedModel, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
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
    family, config = family_of(model), model.config
    twin = copy.copy(model)  # shares all modules and Parameters
    del twin.save_pretrained
    twin.__class__, twin.config = compact, COMPACT_CONFIGS[family.model_type].of(config, dense_ticket(family, config))
    twin.save_pretrained(save_directory, *args, **kwargs)


def _set_classes(model: nn.Module) -> None:
    for module in model.modules():
        if (compact := COMPACT_CLASSES.compact(type(module))) is not None:
            module.__class__ = compact
