"""Pre-training on texts: guessing hidden words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from .. import processes
from ..arguments import PretrainArguments
from ..errors import UsageError
from ..loading import new_model
from ..tasks import Source
from ..tasks.documents import Corpus
from ..tasks.masked_lm import MaskedLMTask, MaskedSequences
from ..training.data import EncodedExamples
from .preparation import prepare
from .run import Run
from .stages import TrainingStage


def pretrain(args: PretrainArguments) -> dict[str, Any]:
    """Pre-trains a model by one of the methods and writes the run's folder, whose `model` can be fine-tuned.

    The stages are those of fine-tuning: a search, a draw, and training from the weights of the beginning; but training
    ends with longer sequences (arXiv 1810.04805, appendix A.2), for which optimizer and schedule begin anew.

    Args:
        args: what to do; see `PretrainArguments`.

    Returns:
        What is in `metrics.json`, as `finetune` says; `eval` has the share of the hidden tokens of held-out texts that
        is guessed and their mean loss, `eval_loss`, and `curve` the same by steps and seconds of training.

    Raises:
        UsageError: (a ValueError) the run cannot be done as asked.
        FloatingPointError: the loss, or an output of the trained model, is not finite.
        Interrupted: on SIGINT or SIGTERM while training, after a checkpoint has been written.
        LostProcessError: of several processes (torchrun), another has ended.
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
    task = MaskedLMTask(corpus=corpus, probability=args.mlm_probability, whole_words=args.whole_words, seed=args.seed)
    train_file, validation_file = (
        None if path is None else Path(path) for path in (args.train_file, args.validation_file)
    )
    source = Source(train_file=train_file, validation_file=validation_file)
    with processes.joined():
        with processes.together():
            run = Pretraining(prepare(args, task, source, args.long_length if args.long_share else None))
        return run.run()


class Pretraining(Run):
    """A run on texts with a second training stage on longer sequences."""

    args: PretrainArguments

    def read_model(self) -> PreTrainedModel:
        """See `Run.read_model`."""
        if self.args.model is not None:
            return super().read_model()
        return new_model(self.prepared.task, self.prepared.config, seed=self.args.seed)

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

    def training_stages(self) -> list[TrainingStage]:
        """See `Run.training_stages`."""
        total = self.stages.steps(self.short)
        long_steps = round(self.args.long_share * total)
        parts = (
            ("train", self.short, total - long_steps, self.args.max_length),
            ("train-long", self.long, long_steps, self.args.long_length),
        )
        return [
            self.stages.training(name, examples, steps, length)
            for name, examples, steps, length in parts
            if examples is not None and steps
        ]
