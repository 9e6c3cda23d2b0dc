"""What each stage of a run is trained with, by the run's arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..arguments import RunArguments
from ..training.data import EncodedExamples, TrainingOrder
from ..training.loop import StageSettings


@dataclass(frozen=True)
class TrainingStage:
    """What is trained on, with which settings, and in which order."""

    settings: StageSettings
    examples: EncodedExamples
    order: TrainingOrder


@dataclass(frozen=True)
class Stages:
    """Makes the stages of a run.

    Attributes:
        args: with all defaults filled in.
        dtype: what the model computes in.
    """

    args: RunArguments
    dtype: torch.dtype

    def steps(self, examples: EncodedExamples) -> int:
        """Optimizer steps of all training stages together, where epochs are those of `examples`."""
        return self.args.max_steps or max(1, round(self.args.epochs * self._order(examples).steps_per_epoch))

    def search(self, examples: EncodedExamples) -> TrainingStage:
        """The search, as long as it can become."""
        args, order = self.args, self._order(examples)
        settings = self._settings(
            "search",
            args.input_length,
            max_steps=args.search_steps or max(1, round(args.search_epochs * order.steps_per_epoch)),
            learning_rate=args.search_learning_rate,
            schedule="constant",
            gate_learning_rate=args.gate_learning_rate,
            gate_l1=args.gate_l1,
            gate_penalty=args.gate_penalty,
        )
        return TrainingStage(settings, examples, order)

    def training(self, name: str, examples: EncodedExamples, steps: int, max_length: int) -> TrainingStage:
        """A training stage of so many optimizer steps on examples of at most `max_length` tokens."""
        args = self.args
        warmup = round(args.warmup_ratio * steps) if args.warmup_steps is None else args.warmup_steps
        settings = self._settings(
            name,
            max_length,
            max_steps=steps,
            learning_rate=args.learning_rate,
            schedule=args.lr_scheduler_type,
            # The last step is none of the warm-up's: with a single one nothing would be learnt.
            warmup_steps=min(warmup, steps - 1),
        )
        return TrainingStage(settings, examples, self._order(examples))

    def pad_to(self, max_length: int) -> int | None:
        """Tokens to pad a stock model's batches to, where examples have at most `max_length`."""
        return max_length if self.args.padding == "max_length" else None

    def _settings(self, name: str, max_length: int, **own: Any) -> StageSettings:
        return StageSettings(
            name=name,
            weight_decay=self.args.weight_decay,
            max_grad_norm=self.args.max_grad_norm,
            dtype=self.dtype,
            pad_to=self.pad_to(max_length),
            optimizer=self.args.optim,
            cuda_graphs=self.args.cuda_graphs == "auto",
            logging_steps=self.args.logging_steps,
            **own,
        )

    def _order(self, examples: EncodedExamples) -> TrainingOrder:
        return TrainingOrder(
            len(examples),
            batch_size=self.args.batch_size,
            accumulation_steps=self.args.gradient_accumulation_steps,
            seed=self.args.seed,
        )
