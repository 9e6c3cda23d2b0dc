"""Tokenised examples, and the order in which training sees them."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch

from ..errors import UsageError
from .ragged import Ragged


@dataclass(frozen=True)
class EncodedExamples:
    """Tokenised examples, not padded.

    Attributes:
        features: per input of the model, one row of tokens per example.
        pad_values: per input of the model, what padding is filled with.
        targets: by the name of the forward's argument, what the model is to say of an example: int64 (a class, a
            position) or float32 `(examples,)`, or float32 `(examples, labels)`.
        token_targets: likewise, what it is to say of its tokens: one row of labels per example, -100 for none.
    """

    features: dict[str, Ragged]
    pad_values: dict[str, int]
    targets: dict[str, torch.Tensor]
    token_targets: dict[str, Ragged] = field(default_factory=dict)

    @property
    def of_tokens(self) -> frozenset[str]:
        """The names of what an example has one of for each token."""
        return frozenset({*self.features, *self.token_targets})

    @property
    def can_skip_logits(self) -> bool:
        """Whether the examples are for masked language models, whose loss can be had without their logits."""
        return False

    @classmethod
    def from_encoding(
        cls, tokenizer: Any, encoding: Mapping[str, Any], targets: dict[str, torch.Tensor], **own: Any
    ) -> Self:
        """What a tokenizer has made, which did not pad; `own` is what a subclass has besides."""
        # The mask says nothing of a sequence that is not padded.
        names = [name for name in tokenizer.model_input_names if name in encoding and name != "attention_mask"]
        return cls(
            features={name: as_ragged(encoding[name]) for name in names},
            pad_values={
                "input_ids": tokenizer.pad_token_id or 0,  # which the mask hides, where there is no such token
                "token_type_ids": tokenizer.pad_token_type_id,
            },
            targets=targets,
            **own,
        )

    def __len__(self) -> int:
        return len(self.features["input_ids"])

    def contents(self) -> dict[str, Any]:
        """All that a run's results depend on, for `checkpoints.fingerprint`."""
        return {"features": self.features, "targets": {**self.targets, **self.token_targets}}

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """One example with its targets.

        Args:
            number: as `TrainingOrder` counts: those of the second epoch go on where those of the first end.
        """
        index = number % len(self)
        columns: dict[str, Any] = {**self.features, **self.targets, **self.token_targets}
        return {name: rows[index] for name, rows in columns.items()}

    def lengths(self) -> list[int]:
        """Tokens per example."""
        return self.features["input_ids"].lengths.tolist()


def as_ragged(rows: Any) -> Ragged:
    """Rows that may be such already."""
    return rows if isinstance(rows, Ragged) else Ragged.of(rows)


def check_fits(examples: EncodedExamples, config: Any) -> None:
    """Checks that a model has an embedding for every id.

    Args:
        examples: a split.
        config: the model's.

    Raises:
        UsageError: an id is larger than the model's embeddings are many, or an example is nothing at all.
    """
    if not all(examples.lengths()):
        raise UsageError("the tokenizer makes no token at all of some examples, and adds none of its own such as [CLS]")
    for name, size in (("input_ids", "vocab_size"), ("token_type_ids", "type_vocab_size")):
        if name not in examples.features:
            continue
        largest = max(examples.pad_values[name], *(int(ids.max()) for ids in examples.features[name].arrays()))
        count = getattr(config, size)
        if largest >= count:
            raise UsageError(
                f"the tokenizer makes {name} up to {largest} and the model has {count} embeddings of them: it is not "
                "this model's"
            )


def unknown_share(tokenizer: Any, examples: EncodedExamples) -> float:
    """Which share of a split's tokens, but those that the tokenizer adds, it has no word for."""
    added = [i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id]
    unknown = words = 0
    for ids in examples.features["input_ids"].arrays():
        unknown += int((ids == tokenizer.unk_token_id).sum())
        words += int((~np.isin(ids, added)).sum())
    return unknown / max(1, words)


class TrainingOrder:
    """Which examples each optimizer step sees.

    Examples are counted through all epochs: number `epoch * num_examples + i` is example `i`, and says to those that
    are other ones in every epoch which of them it is. The order is a fresh permutation per epoch. It depends on the
    seed and the epoch and on nothing else, so that every method and every choice of kernels is trained on the same
    batches, and a resumed run on the ones that were left. Gradient accumulation splits an optimizer step's examples
    and changes neither them nor their weight.
    """

    def __init__(self, num_examples: int, *, batch_size: int, accumulation_steps: int, seed: int) -> None:
        """
        Args:
            num_examples: size of the training split.
            batch_size: examples in one forward pass.
            accumulation_steps: forward passes in one optimizer step.
            seed: of the run.
        """
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.step_size = batch_size * accumulation_steps
        self.seed = seed
        self.steps_per_epoch = -(-num_examples // self.step_size)

    def permutation(self, epoch: int) -> list[int]:
        """The numbers of all examples in the order of this epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.num_examples, generator=generator)
        return (order + epoch * self.num_examples).tolist()

    def steps_from(self, step: int) -> Iterator[list[list[int]]]:
        """Per optimizer step from number `step` (from 0) on, without end: the numbers of its batches' examples."""
        epoch, first = divmod(step, self.steps_per_epoch)
        while True:
            order = self.permutation(epoch)
            for start in range(first * self.step_size, self.num_examples, self.step_size):
                own = order[start : start + self.step_size]
                yield [own[i : i + self.batch_size] for i in range(0, len(own), self.batch_size)]
            epoch, first = epoch + 1, 0


def deal(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Deals examples out to processes so that none has many more tokens than another, and waits less for it.

    The longest first, each to the one that has the fewest tokens by then: two differ by no more than the longest has,
    and each gets an example if there are enough.

    Args:
        lengths: tokens of each example, at least 1.
        count: of processes.

    Returns:
        For each process the places of its examples, in rising order.
    """
    dealt: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, process) for process in range(count)]
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        load, process = loads[0]
        heapq.heapreplace(loads, (load + lengths[place], process))
        dealt[process].append(place)
    return [sorted(places) for places in dealt]
