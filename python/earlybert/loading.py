"""Loading the model of a run: the one that was asked for, whole, with a classifier in the task's order of labels."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForSequenceClassification

from .errors import UsageError

logger = logging.getLogger(__name__)

#: Weights of an encoder's layers, under whatever names stand before.
_ENCODER = re.compile(r"(^|\.)encoder\.")


def load_model(name: str, config: Any, labels: Mapping[int, str], *, seed: int) -> nn.Module:
    """The model that is to be trained, in float32 on the CPU.

    The classifier is the checkpoint's where its labels are the task's, its rows put in the task's order by their
    names, case aside; otherwise it is new, its weights from the seed and so the same for every method.

    Args:
        name: a folder or a model of the hub.
        config: its config, with the task's labels in the task's order.
        labels: the labels by index that the checkpoint's own config names.
        seed: of the classifier.

    Raises:
        UsageError: no weights can be read there, some of the encoder's are not there, or the checkpoint has some
            that the model does not.
    """
    torch.manual_seed(seed)
    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # of a classifier for another number of labels
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"--model {name}: no weights could be read there: {first_line(error)}") from None
    absent = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    _check_encoder(name, model, absent, found["unexpected_keys"])
    _match_classifier(model, absent, labels, seed)
    return model


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    return str(error).strip().split("\n")[0]


def _check_encoder(name: str, model: nn.Module, absent: set[str], unexpected: list[str]) -> None:
    """Raises UsageError if the encoder would be trained from random weights, or without some of the checkpoint's.

    transformers fills in whatever a checkpoint lacks and leaves out what a model lacks. The classifier is the task's,
    and a model that was pre-trained on masked words alone has no pooler; all else must be there, on both sides.
    """
    base = model.base_model_prefix
    missing = sorted(key for key in absent if key.startswith(f"{base}.") and not key.startswith(f"{base}.pooler."))
    if missing:
        raise UsageError(
            f"--model {name}: expected the weights of a whole encoder, found none, or none of the config's shape, "
            f"for {_some(missing)}"
        )
    unused = sorted(key for key in unexpected if _ENCODER.search(key))
    if unused:
        raise UsageError(
            f"--model {name}: the checkpoint holds weights that a model of its config.json does not have: "
            f"{_some(unused)}. The config names fewer layers, or the checkpoint has parts, such as relative positions, "
            "that this version of transformers leaves out: correct the config"
        )


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


@torch.no_grad()
def _match_classifier(model: nn.Module, absent: set[str], labels: Mapping[int, str], seed: int) -> None:
    names = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    outside = [name for name in names if not name.startswith(f"{model.base_model_prefix}.")]
    if not outside or f"{outside[-1]}.weight" in absent:
        logger.info("classifier: new")
        return
    classifier = names[outside[-1]]
    own = [str(labels.get(i, labels.get(str(i)))).casefold() for i in range(len(labels))]
    wanted = [model.config.id2label[i].casefold() for i in range(model.config.num_labels)]
    if sorted(own) == sorted(wanted) and len(set(own)) == len(own):
        order = [own.index(label) for label in wanted]
        for parameter in (classifier.weight, classifier.bias):
            parameter.copy_(parameter[order])
        changed = order != sorted(order)
        logger.info("classifier: the checkpoint's%s", ", its labels put in the task's order" if changed else "")
        return
    torch.manual_seed(seed)
    nn.init.normal_(classifier.weight, std=getattr(model.config, "initializer_range", 0.02))
    nn.init.zeros_(classifier.bias)
    logger.info("classifier: new; the checkpoint's labels (%s) are not the task's (%s)", *map(", ".join, (own, wanted)))
