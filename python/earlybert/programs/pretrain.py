"""Pre-training on texts: guessing hidden words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..arguments import PretrainArguments
from ..errors import UsageError
from ..loading import load_model, new_model
from ..tasks import Source
from ..tasks.documents import Corpus
from ..tasks.masked_lm import MaskedLMTask, MaskedSequences
from ..training.data import EncodedExamples, TrainingOrder
from .preparation import prepare
from .run import Run, TrainingStage


def pretrain(args: PretrainArguments) -> dict[str, Any]:
    """Pre-trains a model by one of the methods and writes the run's folder, whose `model` can be fine-tuned.

    The stages are those of fine-tuning: a search, a draw, and training from the weights of the beginning; but training
    ends with longer sequences (arXiv 1810.04805, appendix A.2), for which optimizer and schedule begin anew.

    Args:
        args: what to do; see `PretrainArguments`.

    Returns:
        What is in `metrics.json`, as `finetune` says; `eval` has the mean loss of the hidden tokens of held-out texts
        and the share of them that is guessed, and `curve` the same by steps and seconds of training.

    Raises:
        UsageError: (a ValueError) the run cannot be done as asked.
        FloatingPointError: the loss, or an output of the trained model, is not finite.
        Interrupted: on SIGINT or SIGTERM while training, after a checkpoint has been written.
    """
    args.check()
    corpus = Corpus(
        blank_lines=args.documents == "blank-line",
        dataset_name=args.dataset_name,
        dataset_config=args.dataset_config_name,
        text_column=args.text_column,
        streaming=args.streaming,
        max_documents=args.max_train_examples,
    )
    task = MaskedLMTask(
        corpus=corpus, probability=args.mlm_probability, whole_words=args.whole_words, seed=args.seed
    )
    paths = (None if path is None else Path(path) for path in (args.train_file, args.validation_file))
    source = Source(None, *paths)
    return Pretraining(prepare(args, task, source, args.long_length if args.long_share else None)).run()


class Pretraining(Run):
    """A run on texts with a second training stage on longer sequences."""

    args: PretrainArguments

    @property
    def eval_steps(self) -> int:
        """See `Run.eval_steps`."""
        return self.args.eval_steps

    def read_model(self) -> nn.Module:
        """See `Run.read_model`."""
        prepared = self.prepared
        if self.args.model is None:
            return new_model(prepared.task, prepared.config, seed=self.args.seed)
        return load_model(self.args.model, prepared.task, prepared.config, prepared.labels, seed=self.args.seed)

    def read_examples(self) -> dict[str, EncodedExamples]:
        """See `Run.read_examples`."""
        self.short = self.encode(self.prepared.data.train)
        if len(self.short) < self.args.batch_size:
            raise UsageError(
                f"the texts make {len(self.short)} sequences, less than a batch of --batch-size {self.args.batch_size}"
            )
        self.long = self.encode(self.prepared.data.train, self.args.long_length) if self.args.long_share else None
        found = {"the training texts": self.short}
        return found if self.long is None else {**found, "the training texts in longer sequences": self.long}

    def held_out(self, encoded: MaskedSequences) -> MaskedSequences:
        """See `Run.held_out`: what is hidden is the same in every run."""
        return encoded.as_held_out()

    def search_stage(self) -> TrainingStage:
        """See `Run.search_stage`."""
        order = self.order(self.short)
        settings = self.settings(
            "search",
            max_steps=self.search_steps(order),
            learning_rate=self.args.search_learning_rate,
            schedule="constant",
            gate_learning_rate=self.args.gate_learning_rate,
            gate_l1=self.args.gate_l1,
            optimizer=self.args.optimizer,
        )
        return TrainingStage(settings, self.short, order)

    def training_stages(self) -> list[TrainingStage]:
        """See `Run.training_stages`."""
        order = self.order(self.short)
        total = self.training_steps(order)
        steps = round(self.args.long_share * total)
        stages = [self._stage("train", total - steps, self.short, order)] if total > steps else []
        return [*stages, self._stage("train-long", steps, self.long, self.order(self.long))] if steps else stages

    def _stage(self, name: str, steps: int, examples: EncodedExamples, order: TrainingOrder) -> TrainingStage:
        settings = self.settings(
            name,
            max_steps=steps,
            learning_rate=self.args.learning_rate,
            schedule="linear",
            warmup_steps=round(self.args.warmup_ratio * steps),
            optimizer=self.args.optimizer,
        )
        return TrainingStage(settings, examples, order)
