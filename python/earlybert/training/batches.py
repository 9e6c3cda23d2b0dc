"""From examples to the batches that a model takes: packed for a converted one, padded for a stock one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

import earlybert_kernels as ek

from .. import processes
from .data import EncodedExamples, deal

Batch = dict[str, Any]

#: What stands where a token has no label.
NO_LABEL = -100

#: Batches that are filled up get a multiple of so many tokens for every example. Mean lengths of batches of 32 differ
#: by a few tokens, so that shapes are a handful.
FILL_PER_EXAMPLE = 4


class BatchMaker:
    """Makes a model's batches of a split's examples.

    Attributes:
        packs: whether batches are packed ones, without padding; padded otherwise.
        label_tokens: whether labels are of single tokens, and not of whole examples.
    """

    def __init__(
        self,
        model: nn.Module,
        examples: EncodedExamples,
        device: torch.device,
        *,
        pad_to: int | None = None,
        fill_from: int | None = None,
        skip_logits: bool = False,
    ) -> None:
        """
        Args:
            model: which the batches are for; a converted one meets no padding.
            examples: the split.
            device: where batches go.
            pad_to: pad to this many tokens; None for the longest of a batch. Of no account where batches are packed.
            fill_from: examples of a full batch, to fill packed batches up to few shapes; None to fill nothing.
            skip_logits: packed batches ask for the loss alone, where the examples are such that they can.
        """
        self.packs = ek.is_converted(model)
        self.label_tokens = "labels" in examples.of_tokens
        self._examples = examples
        self._lengths = np.asarray(examples.lengths())
        self._fills = fill_from is not None
        self._device = device
        self._pad_to = pad_to
        options: dict[str, Any] = {
            "skip_logits": skip_logits and examples.can_skip_logits,
            "labels_of": "tokens" if self.label_tokens else "sequences",
        }
        if fill_from is not None:
            options |= {
                "fill_to": FILL_PER_EXAMPLE * fill_from,
                "batch_size": fill_from,
                "max_length": max(2, *examples.lengths()),
            }
        self._pack = ek.PackedCollator(**options)

    def __call__(self, indices: list[int]) -> Batch:
        """The batch of these examples, with their targets, where the model is."""
        return self.move(self.make(indices))

    def make(self, indices: list[int]) -> Batch:
        """The batch of these examples on the host."""
        if self.packs:
            return self._pack([self._examples[index] for index in indices])
        return collate(self._examples, indices, pad_to=self._pad_to)

    def make_share(self, indices: list[int]) -> tuple[Batch, int]:
        """The part of a batch that this process has, and how many examples, or labelled tokens, it counts for."""
        own = [indices[place] for place in deal(self.lengths(indices), processes.count())[processes.rank()]]
        # All processes take part in every reduction. One for which nothing is left does so with an example of weight 0.
        batch = self.make(own or indices[:1])
        if not self.label_tokens:
            return batch, len(own)
        labels = batch["labels"]
        count = int((labels != NO_LABEL).sum())
        if count == 0 and not self._fills:  # filled batches are of captured steps, which know no weights
            labels.view(-1)[0] = 0  # the mean over no labels would be no number, which weight 0 does not make one
        return batch, count if own else 0

    def lengths(self, indices: list[int]) -> list[int]:
        """Tokens of each of some examples, as `TrainingOrder` counts them."""
        return self._lengths[np.asarray(indices) % len(self._lengths)].tolist()

    def move(self, batch: Batch) -> Batch:
        """A batch where the model is; a copy to a GPU does not wait."""
        if self._device.type != "cuda":
            return batch
        return {
            name: value.pin_memory().to(self._device, non_blocking=True) if torch.is_tensor(value) else value
            for name, value in batch.items()
        }


def collate(examples: EncodedExamples, indices: list[int], *, pad_to: int | None = None) -> Batch:
    """The padded batch of some examples.

    Args:
        examples: the split.
        indices: which examples.
        pad_to: pad to this many tokens; None for the longest of the batch.

    Raises:
        ValueError: an example is longer than `pad_to`.

    Returns:
        The model's inputs, and targets of tokens, `(batch, tokens)` int64; targets of examples `(batch,)`, or
        `(batch, labels)`.
    """
    rows = [examples[index] for index in indices]
    rows = [{**row, "attention_mask": torch.ones_like(row["input_ids"])} for row in rows]
    of_tokens = examples.of_tokens | {"attention_mask"}
    fills = {"attention_mask": 0, **examples.pad_values}
    batch = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name not in of_tokens:
            batch[name] = torch.stack(values)
            continue
        fill = fills.get(name, NO_LABEL)
        padded = pad_sequence(values, batch_first=True, padding_value=fill)
        if pad_to is not None:
            if padded.shape[1] > pad_to:
                raise ValueError(f"an example has {padded.shape[1]} tokens, more than pad_to, {pad_to}")
            padded = torch.nn.functional.pad(padded, (0, pad_to - padded.shape[1]), value=fill)
        batch[name] = padded
    return batch


def split_labelled(rows: torch.Tensor, labels: torch.Tensor, lengths: Sequence[int]) -> list[torch.Tensor]:
    """What belongs to each sequence of a batch, of something that there is for each labelled token.

    Args:
        rows: one for each label of the batch, in their order.
        labels: the batch's, `(batch, tokens)` or packed `(1, T)`; -100 where there is none.
        lengths: tokens of each sequence.
    """
    labelled = labels != NO_LABEL
    if len(labelled) == len(lengths):  # padded; a packed batch of one sequence is the same
        counts = labelled.sum(dim=1)
    else:
        counts = torch.stack([part.sum() for part in labelled[0, : sum(lengths)].split(list(lengths))])
    return list(rows.split(counts.tolist()))
