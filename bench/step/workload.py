"""What is trained where whole steps are measured: a BERT and its batches, as the command line says, or packed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging

import earlybert_kernels as ek
from earlybert.training.batches import Batch, collate
from earlybert.training.data import EncodedExamples
from earlybert_kernels.models.registry import MODEL_TYPES

from ..shapes import SHAPES
from .examples import random_examples, read_squad, read_sst2, read_texts, with_answers, with_hidden_words

#: Longest sequences, as the recipes of GLUE, SQuAD and pre-training cut them.
_MAX_LENGTH = {"sst2": 128, "squad": 384, "full": 128, "texts": 128}
#: What is trained on sequences of these lengths; two classes on the others.
_HEADS = {"squad": AutoModelForQuestionAnswering, "texts": AutoModelForMaskedLM}

#: Packed batches of different sizes are filled up to a multiple of this share of one.
_FILLED_SHARE = 1 / 32


def quiet_transformers() -> None:
    """Leaves out what transformers says of new heads and of loading: a measurement wants both."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


@dataclass(frozen=True)
class Workload:
    """What is trained, as the command line says it.

    Attributes:
        model: folder or hub name of a pretrained model, or None.
        shape: name of a shape to build with random weights where there is no model.
        lengths: `"sst2"`, `"squad"`, `"full"`; or `"texts"`, in sequences that are all full, with words hidden.
        data_dir: folder with the data; None for random tokens in sequences of such lengths.
        padding: `"longest"` or `"max_length"`.
        max_length: tokens of the longest sequence; None for the usual one.
        batch_size: sequences of a batch.
        dtype: what steps compute in, by name; parameters and the check of the logits are float32.
        model_type: of the model of that shape; None for BERT.
    """

    model: str | None
    shape: str | None
    lengths: str
    data_dir: Path | None
    padding: str
    max_length: int | None
    batch_size: int
    dtype: str = "float32"
    model_type: str | None = None

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds one flag per attribute."""
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--model", help="folder or hub name of a pretrained model")
        which.add_argument("--shape", choices=tuple(SHAPES), help="a model of this shape with random weights")
        parser.add_argument("--model-type", choices=MODEL_TYPES, help="of the model of that shape; default: bert")
        parser.add_argument("--lengths", choices=tuple(_MAX_LENGTH), default="sst2", help="default: %(default)s")
        parser.add_argument(
            "--data-dir",
            type=Path,
            help="folder with SST-2's tsv, SQuAD's json or text files, needs --model; default: random tokens in "
            "sequences of their lengths",
        )
        parser.add_argument(
            "--padding", choices=("longest", "max_length"), default="longest", help="of every batch; default: longest"
        )
        parser.add_argument("--max-length", type=int, help="tokens; default: 128, with --lengths squad 384")
        parser.add_argument("--batch-size", type=int, default=32, help="default: %(default)s")
        parser.add_argument(
            "--dtype", choices=("float32", "bfloat16"), default="float32", help="of autocast; default: %(default)s"
        )

    @classmethod
    def from_arguments(cls, args: argparse.Namespace, parser: argparse.ArgumentParser) -> Workload:
        """Takes its own of the parsed arguments; leaves by `parser.error` where they do not fit together."""
        if args.data_dir is not None and args.model is None:
            parser.error("--data-dir needs --model, whose tokenizer reads the data")
        if args.model_type is not None and args.shape is None:
            parser.error("--model-type is that of a --shape; a --model says its own")
        if args.data_dir is not None and args.lengths == "full":
            parser.error("--lengths full takes no --data-dir: all its tokens are random")
        return cls(**{name: getattr(args, name) for name in cls.__dataclass_fields__})

    def flags(self) -> list[str]:
        """The command line that says the same."""
        flags = []
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if value is not None:
                flags += ["--" + name.replace("_", "-"), str(value)]
        return flags

    @property
    def longest(self) -> int:
        """Tokens that no sequence exceeds."""
        return self.max_length or _MAX_LENGTH[self.lengths]

    def stock_model(self) -> nn.Module:
        """The stock model, with the same weights at every call: for questions, hidden words or two classes."""
        torch.manual_seed(0)
        auto = _HEADS.get(self.lengths, AutoModelForSequenceClassification)
        return auto.from_config(self._config()) if self.model is None else auto.from_pretrained(self.model)

    def batches(self, count: int, device: torch.device) -> list[Batch]:
        """So many batches in random order, always the same ones, each padded as `padding` says."""
        size = self.batch_size
        examples = self._examples(count * size)
        pad_to = self.longest if self.padding == "max_length" else None
        batches = []
        for start in range(0, count * size, size):
            indices = [number % len(examples) for number in range(start, start + size)]
            batch = {name: tensor.to(device) for name, tensor in collate(examples, indices, pad_to=pad_to).items()}
            is_random = self.lengths == "squad" and "start_positions" not in batch
            batches.append(with_answers(batch) if is_random else batch)
        return batches

    def _config(self) -> Any:
        if self.model is not None:
            return AutoConfig.from_pretrained(self.model)
        return SHAPES[self.shape].config(self.model_type or "bert")

    def _examples(self, count: int) -> EncodedExamples:
        if self.data_dir is None:
            config = self._config()
            mix = str(self.longest) if self.lengths in ("full", "texts") else self.lengths
            examples = random_examples(mix, count, self.longest, config.vocab_size)
            return with_hidden_words(examples, config.vocab_size) if self.lengths == "texts" else examples
        read = {"sst2": read_sst2, "squad": read_squad, "texts": read_texts}[self.lengths]
        return read(self.data_dir, count, AutoTokenizer.from_pretrained(self.model), self.longest)


def labels_tokens(batch: Batch) -> bool:
    """Whether a padded batch's labels are of tokens: a converted model can then be asked for the loss alone."""
    return "labels" in batch and batch["labels"].dim() == 2


def pack(batches: Sequence[Batch]) -> list[dict[str, Any]]:
    """The same batches as a collator that packs makes them, on the same device.

    Where their tokens differ in number they are filled up, so that they have few shapes.
    """
    counts = [int(batch["attention_mask"].sum()) for batch in batches]
    rows, longest = batches[0]["attention_mask"].shape[0], max(b["attention_mask"].shape[1] for b in batches)
    options: dict[str, Any] = {"skip_logits": labels_tokens(batches[0])}
    if len(set(counts)) > 1:
        options |= {"fill_to": max(1, round(_FILLED_SHARE * max(counts))), "batch_size": rows, "max_length": longest}
    collate_packed = ek.PackedCollator(**options)
    packed = []
    for batch in batches:
        device = batch["attention_mask"].device
        on_host = {name: tensor.cpu() for name, tensor in batch.items()}
        masks = on_host.pop("attention_mask").bool()
        examples = [
            {name: values[row][mask] if values.dim() == 2 else values[row] for name, values in on_host.items()}
            for row, mask in enumerate(masks)
        ]
        made = collate_packed(examples)
        packed.append({name: v.to(device) if torch.is_tensor(v) else v for name, v in made.items()})
    return packed
