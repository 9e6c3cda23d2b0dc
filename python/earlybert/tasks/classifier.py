"""The classes that a model's classifier tells apart: their names in its config, and its weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from .heads import head_of, renew

logger = logging.getLogger(__name__)


def set_classes(config: Any, names: Sequence[str], problem_type: str | None) -> None:
    """Puts the names of the classes into a model's config, and what transformers calls the kind of loss.

    All of it: the model may come from a task of another kind, whose loss would stay.
    """
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    config.problem_type = problem_type


@torch.no_grad()
def match_classifier(model: PreTrainedModel, absent: set[str], labels: Mapping[int, str], seed: int) -> None:
    """See `Task.match_head`. The checkpoint's classes are put in the task's order by their names, case aside."""
    path = head_of(model).classifier
    classifier: Any = model.get_submodule(path)
    weights = {f"{path}.weight", f"{path}.bias"}
    config: Any = model.config
    own = [labels.get(index, "").casefold() for index in range(len(labels))]
    wanted = [config.id2label[index].casefold() for index in range(config.num_labels)]
    if absent & weights:
        why = "the checkpoint has none for as many labels"
    elif sorted(own) != sorted(wanted) or len(set(own)) < len(own):
        why = f"the checkpoint's labels ({', '.join(own)}) are not the task's ({', '.join(wanted)})"
    else:
        order = [own.index(label) for label in wanted]
        for parameter in (classifier.weight, classifier.bias):
            parameter.copy_(parameter[order])
        moved = order != sorted(order)
        logger.info("classifier: the checkpoint's%s", ", its labels put in the task's order" if moved else "")
        return
    renew(model, absent | weights, seed)
    logger.info("classifier: new; %s", why)
