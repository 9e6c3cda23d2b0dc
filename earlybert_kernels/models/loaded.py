"""Whether what was loaded is the checkpoint: transformers fills what that lacks with random numbers, and goes on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from .compact_classes import COMPACT_CLASSES

_FOREIGN = "its config and its weights do not belong together"


class Gaps(NamedTuple):
    """Weights of a base model, by name, that it and a checkpoint do not both have. The pooler counts as a head's.

    Attributes:
        missing: those that the checkpoint lacks, or has in another shape.
        unused: those that only the checkpoint has.
    """

    missing: list[str]
    unused: list[str]


def encoder_gaps(model: PreTrainedModel, absent: Collection[str], unexpected: Collection[str]) -> Gaps:
    """What the base model of `model` and a checkpoint do not both have.

    Args:
        model: which was loaded.
        absent: names of its weights that were not taken from the checkpoint, as transformers reports them.
        unexpected: names of weights in the checkpoint that the model has not.
    """
    base, prefix = model.base_model, "" if model.base_model is model else f"{model.base_model_prefix}."
    missing = [key for key in absent if key.startswith(prefix) and not key.startswith(f"{prefix}pooler.")]
    # Old versions of transformers saved buffers that are no part of a checkpoint now.
    buffers = {key for key, _ in base.named_buffers()}
    parts = {key for key, _ in base.named_children()}
    own = {key: key.removeprefix(f"{model.base_model_prefix}.") for key in unexpected}
    unused = [key for key, short in own.items() if short.split(".")[0] in parts and short not in buffers]
    return Gaps(sorted(missing), sorted(unused))


def check_loaded(model: PreTrainedModel, found: Mapping[str, Any], source: Any, *, other_head: bool) -> None:
    """Raises unless the weights of a compact model are the checkpoint's, but for a head that it does not have.

    Args:
        model: which was loaded.
        found: transformers' report of that (`output_loading_info`).
        source: where from, for messages.
        other_head: whether a head of another size may be new (`ignore_mismatched_sizes`).

    Raises:
        ValueError: the checkpoint lacks a weight, or has it in another shape than the config states, or has one of a
            layer that the model lacks. The message names it.
    """
    missing, differing = set(found["missing_keys"]), {key: shapes for key, *shapes in found["mismatched_keys"]}
    gaps = encoder_gaps(model, {*missing, *differing}, found["unexpected_keys"])
    wrong = {*gaps.missing}
    if not other_head:
        wrong.update(differing)
    # A base model's pooler is optional, a head of the class that was saved is not.
    names = {cls.__name__ for cls in (type(model), COMPACT_CLASSES.stock(type(model)))}
    if names & {*(model.config.architectures or ())} and model is not model.base_model:
        wrong.update(missing)
    for key in sorted(wrong):
        if key in missing:
            what = f"lacks {key}"
        else:
            theirs, ours = map(tuple, differing[key])
            what = f"has {key} of shape {theirs}, which is {ours} by its config"
        of_head = not wrong & {*missing, *gaps.missing}
        advice = "ignore_mismatched_sizes=True makes a new head" if of_head else _FOREIGN
        raise ValueError(f"the checkpoint {source} {what}{others(wrong)}: {advice}")
    if gaps.unused:
        raise ValueError(
            f"the checkpoint {source} has {gaps.unused[0]}{others(gaps.unused)}, which a model of its config lacks: "
            f"{_FOREIGN}"
        )


def others(names: Collection[str]) -> str:
    """How many there are beside the one that is named."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
