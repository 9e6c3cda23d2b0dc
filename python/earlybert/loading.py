"""Reading the model of a run: the one that was asked for, whole, with a head for the task."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel

import earlybert_kernels as ek
from earlybert_kernels.models import encoder_gaps, family_of_type
from earlybert_kernels.models.compact_classes import COMPACT_CLASSES
from earlybert_kernels.pruned import without_pruned_heads

from .errors import MissingFileError, UsageError
from .run_directory import RunDirectory
from .tasks import Task

logger = logging.getLogger(__name__)

#: Fields of a config that do not change what a model computes, as the programs need them.
_PLAIN = {
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
    "chunk_size_feed_forward": 0,
}
#: Fields of a config that are sizes, beside the number of neurons; not every family has token types.
_SIZES = ("hidden_size", "num_hidden_layers", "vocab_size", "type_vocab_size")


def read_config(
    name: str, flag: str = "--model", head: str = "ForSequenceClassification"
) -> tuple[Any, dict[int, str]]:
    """The config of a model that the programs can train, and the names of its classes.

    Args:
        name: a folder or a model of the hub.
        flag: what it was given by, for messages.
        head: what the names of classes of models with the task's head end in.

    Returns:
        The config; and by index the names that the model's own config.json gives its classes, nothing where the
        model has another head.

    Raises:
        UsageError: no config can be read there, or none of a model that `earlybert_kernels.convert` takes, which stock
            modules have to be as well: they are what it is compared with.
    """
    if not Path(name).exists() and (Path(name).is_absolute() or name.startswith((".", "~"))):
        raise MissingFileError(f"{flag} {name}: no such folder")
    if RunDirectory(name).model.is_dir() and not (Path(name) / "config.json").exists():
        raise UsageError(f"{flag} {name}: the folder of a run, whose model is in {RunDirectory(name).model}")
    with reading(f"{flag} {name}: no model could be read there"):
        config = AutoConfig.from_pretrained(name)
        stated, _ = PreTrainedConfig.get_config_dict(name)
        labels = _labels(config, stated, head)
    try:
        if getattr(config, "pruned_heads", None):  # by transformers 4
            config = without_pruned_heads(config)
        ek.check_convertible(config)
        getattr(config, "ticket", None)  # a compact model's, of which the config says what is left
    except (TypeError, ValueError) as error:
        raise UsageError(f"{flag} {name}: {error}") from None
    for field in (*_SIZES, family_of_type(config.model_type).neurons_field):
        if (value := getattr(config, field, 1)) < 1:
            raise UsageError(f"{flag} {name}: its config.json says {field} {value}, expected at least 1")
    if getattr(config, "quantization_config", None) is not None:
        raise UsageError(f"{flag} {name}: its weights are quantised and cannot be trained; give the model in float")
    if getattr(config, "gated", False):
        raise UsageError(
            f"{flag} {name}: it was saved with the gates of a search, which would be trained as weights; save it "
            "without them (earlybert_kernels.remove_gates)"
        )
    if (Path(name) / "adapter_config.json").exists():
        raise UsageError(
            f"{flag} {name}: beside the model there is an adapter, which would be left out; merge it into the model's "
            "weights (merge_and_unload), or remove adapter_config.json"
        )
    for field, value in _PLAIN.items():
        setattr(config, field, value)
    return config, labels


def _labels(config: Any, stated: Mapping[str, Any], head: str) -> dict[int, str]:
    """The names of the classes by index, from a config as it was read and from what its file states.

    transformers forgets the label2id of a file without id2label, and the id2label of one with another num_labels.
    """
    architectures = stated.get("architectures")
    if architectures and not any(name.endswith(head) for name in architectures):
        return {}
    labels = {int(index): str(label) for index, label in (stated.get("id2label") or config.id2label).items()}
    if all(label == f"LABEL_{index}" for index, label in labels.items()) and stated.get("label2id"):
        return {int(index): str(label) for label, index in stated["label2id"].items()}
    return labels


def read_tokenizer(name: str, config: Any, flag: str = "--model") -> Any:
    """The tokenizer of a model, which makes no token type where the model has one alone.

    Args:
        name: a folder or a model of the hub.
        config: the model's.
        flag: what it was given by, for messages.

    Raises:
        UsageError: none can be read there, or its ids are not those of the model's embeddings.
    """
    with reading(f"{flag} {name}: no tokenizer could be read there"):
        tokenizer = AutoTokenizer.from_pretrained(name)
        largest = max(tokenizer.get_vocab().values(), default=-1)
    # Where a folder has no vocabulary transformers makes one of its special tokens.
    if not config.vocab_size / 2 <= largest + 1 <= config.vocab_size:
        raise UsageError(
            f"{flag} {name}: its tokenizer has token ids up to {largest} and its embeddings are "
            f"{config.vocab_size}: the tokenizer's files are not there, or not this model's"
        )
    if getattr(config, "type_vocab_size", 1) < 2:
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    return tokenizer


def load_model(name: str, task: Task, config: Any, labels: Mapping[int, str], *, seed: int) -> PreTrainedModel:
    """The model that is to be trained, in float32 on the CPU.

    The head is the checkpoint's where that is of this task; otherwise it is new, its weights from the seed and so the
    same for every method.

    Args:
        name: a folder or a model of the hub.
        task: what the model is to be trained on.
        config: what `read_config` gave, configured for the task.
        labels: the labels of the checkpoint, as `read_config` gave them.
        seed: of a new head.

    Raises:
        UsageError: no weights can be read there, some of the encoder's are not there or not finite, or the
            checkpoint has some that the model does not.
    """
    torch.manual_seed(seed)
    with reading(f"--model {name}: no weights could be read there"):
        model, found = task.model_class.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # of a classifier for another number of labels
            output_loading_info=True,
        )
    absent = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    _check_encoder(name, model, absent, found["unexpected_keys"])
    task.match_head(model, absent, labels, seed)
    return model


def load_whole_model(name: str, *, dtype: Any) -> PreTrainedModel:
    """A model with the head that its config names, whole, in evaluation mode.

    Args:
        name: a folder or a model of the hub, compact or not.
        dtype: as `from_pretrained` takes it.

    Raises:
        UsageError: no model can be read there, it is not whole, or it has no head that is known.
    """
    config, _ = read_config(name, "model")
    family = family_of_type(config.model_type)
    stated = (config.architectures or [None])[0]
    named = {}
    for auto, stock in family.auto_classes:
        for cls in (stock, COMPACT_CLASSES.compact(stock) or stock):
            named[cls.__name__] = auto
    if stated not in named:
        raise UsageError(f"model {name}: its config names no class of {family.name} that is known, found {stated}")
    auto_class = getattr(transformers, named[stated])
    with reading(f"model {name}: no weights could be read there"):
        model, found = auto_class.from_pretrained(name, config=config, dtype=dtype, output_loading_info=True)
    missing = sorted(found["missing_keys"])
    if model.base_model is model and missing and all(key.startswith("pooler.") for key in missing):
        model.pooler = None  # as it was saved
    elif missing:
        raise UsageError(f"model {name}: expected the weights of a whole {stated}, found none for {missing[0]}")
    return model.eval()


def new_model(task: Task, config: Any, *, seed: int) -> PreTrainedModel:
    """A model of a config with new weights, all of them from the seed, in float32 on the CPU."""
    torch.manual_seed(seed)
    return task.model_class.from_config(config, dtype=torch.float32)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns whatever goes wrong while transformers reads a file of others into UsageError, `what` before its message.

    It hands on the errors of the many libraries that it reads with: of JSON, pickles, safetensors, tokenizers, fields
    of the wrong type, packages that are not installed.
    """
    try:
        yield
    except Exception as error:
        raise UsageError(f"{what}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What an error says, in short: its first line, and the next where that one announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__} {text}" if isinstance(error, LookupError) else text  # which says a bare key


def _check_encoder(name: str, model: PreTrainedModel, absent: set[str], unexpected: list[str]) -> None:
    """Raises UsageError if the encoder would be trained from random weights, or without some of the checkpoint's.

    transformers fills in whatever a checkpoint lacks and leaves out what a model lacks. The classifier is the task's,
    and a model that was pre-trained on masked words alone has no pooler; all else must be there, on both sides.
    """
    missing, unused = encoder_gaps(model, absent, unexpected)
    if missing:
        raise UsageError(
            f"--model {name}: expected the weights of a whole encoder, found none, or none of the config's shape, "
            f"for {_some(missing)}"
        )
    if unused:
        raise UsageError(
            f"--model {name}: the checkpoint holds weights that a model of its config.json does not have: "
            f"{_some(unused)}. The config names fewer layers, or the checkpoint has parts, such as relative positions, "
            "that this version of transformers leaves out: correct the config"
        )
    broken = sorted(key for key, weight in model.base_model.named_parameters() if not weight.isfinite().all())
    if broken:
        raise UsageError(f"--model {name}: expected finite weights, found NaN or infinity in {_some(broken)}")


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
