"""Tokenised examples, and the order in which training sees them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from ..errors import UsageError


@dataclass(frozen=True)
class EncodedExamples:
    """Tokenised examples, not padded.

    Attributes:
        features: per input of the model, one int64 tensor `(tokens,)` per example.
        pad_values: per input of the model, what padding is filled with.
        targets: by the name of the forward's argument, what the model is to say: int64 (a class, a position) or
            float32 `(examples,)`.
    """

    features: dict[str, list[torch.Tensor]]
    pad_values: dict[str, int]
    targets: dict[str, torch.Tensor]

    @classmethod
    def from_encoding(
        cls, tokenizer: Any, encoding: Mapping[str, Any], targets: dict[str, torch.Tensor], **own: Any
    ) -> Self:
        """What a tokenizer has made, which did not pad; `own` is what a subclass has besides."""
        names = [name for name in tokenizer.model_input_names if name in encoding]
        return cls(
            features={name: [torch.as_tensor(values) for values in encoding[name]] for name in names},
            pad_values={
                "input_ids": tokenizer.pad_token_id or 0,  # which the mask hides, where there is no such token
                "token_type_ids": tokenizer.pad_token_type_id,
                "attention_mask": 0,
            },
            targets=targets,
            **own,
        )

    def __len__(self) -> int:
        return len(self.features["input_ids"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One example as a tokenizer gives it, without the mask, which says nothing of it, and with its targets."""
        features = {name: values[index] for name, values in self.features.items() if name != "attention_mask"}
        return features | {name: values[index] for name, values in self.targets.items()}

    def lengths(self) -> list[int]:
        """Tokens per example."""
        return [len(ids) for ids in self.features["input_ids"]]


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
    for name, field in (("input_ids", "vocab_size"), ("token_type_ids", "type_vocab_size")):
        if name not in examples.features:
            continue
        largest = max(examples.pad_values[name], torch.cat(examples.features[name]).max().item())
        count = getattr(config, field)
        if largest >= count:
            raise UsageError(
                f"the tokenizer makes {name} up to {largest} and the model has {count} embeddings of them: it is not "
                "this model's"
            )


def unknown_share(tokenizer: Any, examples: EncodedExamples) -> float:
    """Which share of a split's tokens, but those that the tokenizer adds, it has no word for."""
    ids = torch.cat(examples.features["input_ids"])
    unknown = (ids == tokenizer.unk_token_id) if tokenizer.unk_token_id is not None else torch.zeros_like(ids)
    added = torch.isin(ids, torch.tensor([i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id]))
    return (unknown.sum() / (~added).sum().clamp(min=1)).item()


class TrainingOrder:
    """Which examples each optimizer step sees.

    The order is a fresh permutation per epoch. It depends on the seed and the epoch and on nothing else, so
    that every method and every choice of kernels is trained on the same batches, and a resumed run on the
    ones that were left. Gradient accumulation splits an optimizer step's examples and changes neither them
    nor their weight.
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
        """All examples in the order of this epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.num_examples, generator=generator).tolist()

    def steps_from(self, step: int) -> Iterator[list[list[int]]]:
        """Per optimizer step from number `step` (from 0) on, without end: the indices of its batches."""
        epoch, first = divmod(step, self.steps_per_epoch)
        while True:
            order = self.permutation(epoch)
            for start in range(first * self.step_size, self.num_examples, self.step_size):
                own = order[start : start + self.step_size]
                yield [own[i : i + self.batch_size] for i in range(0, len(own), self.batch_size)]
            epoch, first = epoch + 1, 0
