"""From examples to the batches that a model takes: packed for a converted one, padded for a stock one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

import earlybert_kernels as ek

from .data import EncodedExamples

Batch = dict[str, Any]

#: Batches that are filled up get a multiple of so many tokens for every example. Mean lengths of batches of 32 differ
#: by a few tokens, so that shapes are a handful.
FILL_PER_EXAMPLE = 4


class BatchMaker:
    """Makes a model's batches of a split's examples. A copy to a GPU does not wait.

    Attributes:
        packs: whether batches are packed ones, without padding; padded otherwise.
    """

    def __init__(
        self,
        model: nn.Module,
        examples: EncodedExamples,
        device: torch.device,
        *,
        pad_to: int | None = None,
        fill_from: int | None = None,
    ) -> None:
        """
        Args:
            model: which the batches are for; a converted one meets no padding.
            examples: the split.
            device: where batches go.
            pad_to: pad to this many tokens; None for the longest of a batch. Of no account where batches are packed.
            fill_from: examples of a full batch, to fill packed batches up to few shapes; None to fill nothing.
        """
        self.packs = ek.is_converted(model)
        self._examples = examples
        self._device = device
        self._pad_to = pad_to
        self._pack = (
            ek.PackedCollator()
            if fill_from is None
            else ek.PackedCollator(
                fill_to=FILL_PER_EXAMPLE * fill_from, batch_size=fill_from, max_length=max(2, *examples.lengths())
            )
        )

    def __call__(self, indices: list[int]) -> Batch:
        """The batch of these examples, with their targets `(batch,)`."""
        if self.packs:
            batch = self._pack([self._examples[index] for index in indices])
        else:
            batch = collate(self._examples, indices, pad_to=self._pad_to)
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

    Returns:
        The model's inputs `(batch, tokens)` int64, and its targets `(batch,)`.
    """
    batch = {}
    for name, sequences in examples.features.items():
        value = examples.pad_values[name]
        padded = pad_sequence([sequences[i] for i in indices], batch_first=True, padding_value=value)
        if pad_to is not None:
            padded = torch.nn.functional.pad(padded, (0, pad_to - padded.shape[1]), value=value)
        batch[name] = padded
    return batch | {name: values[indices] for name, values in examples.targets.items()}
