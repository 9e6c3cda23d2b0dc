"""What pre-training can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..errors import UsageError
from .run import RunArguments, expect, expect_one_of, help_field

DOCUMENTS = ("line", "blank-line")


@dataclass(frozen=True, kw_only=True)
class _OfTexts:
    """What is pre-trained, and on what; listed before the rest."""

    model: str | None = help_field("Folder or hub name of a model to go on from. Give this or --config-name.")
    config_name: str | None = help_field("Folder or hub name of a model whose config.json is that of a new one.")
    tokenizer: str | None = help_field(
        "Folder or hub name of the tokenizer. Default: that of --model or --config-name."
    )
    train_file: str | None = help_field("Text file in UTF-8. Give this or --dataset-name.")
    validation_file: str | None = help_field(
        "Text file to evaluate on. Default: one in twenty documents, at most 1,000, are held out."
    )
    documents: Literal["line", "blank-line"] = help_field(
        "line: every line of a text file is a document. blank-line: documents are separated by blank lines.", "line"
    )
    dataset_name: str | None = help_field("A dataset of the hub with a split train, and perhaps one named validation.")
    dataset_config_name: str | None = help_field("Its configuration.")
    text_column: str = help_field("Its column with the texts.", "text")
    streaming: bool = help_field("Read no more of it than --max-train-examples documents.", False)


@dataclass(frozen=True, kw_only=True)
class PretrainArguments(RunArguments, _OfTexts):
    """The arguments of `earlybert.pretrain` and the flags of `earlybert pretrain`. Examples are documents here."""

    batch_size: int = help_field("Sequences in one forward pass of training.", 32)
    eval_batch_size: int = help_field("Sequences in one forward pass of evaluation.", 32)
    max_train_examples: int | None = help_field("Use only so many of the first training documents.")
    max_eval_examples: int | None = help_field("Use only so many of the first evaluation documents.")
    max_length: int = help_field("Cut documents into sequences of so many tokens.", 128)
    long_length: int = help_field("Tokens of a sequence in the last part of training.", 512)
    long_share: float = help_field("Share of the training stage's steps that is trained on the longer sequences.", 0.1)
    mlm_probability: float = help_field("Share of the tokens that are to be guessed.", 0.15)
    whole_words: bool = help_field("Hide all tokens of a word together.", False)
    optim: Literal["adamw", "lamb"] = field(
        default="lamb", metadata={"aliases": ["--optimizer"], "help": "Optimizer of all stages."}
    )
    learning_rate: float = help_field("Highest learning rate of the training stage.", 2e-3)
    warmup_ratio: float = help_field("Share of the training stage over which the learning rate rises from 0.", 0.1)
    weight_decay: float = help_field("Weight decay of the weight matrices.", 0.01)
    search_learning_rate: float = help_field("Constant learning rate of the weights in the search.", 1e-3)
    eval_strategy: Literal["no", "steps", "epoch"] = help_field(
        "When a model is evaluated while it trains, and not at the end alone: never, every --eval-steps, each epoch.",
        "steps",
    )

    @property
    def task(self) -> str:
        """The task's name."""
        return "mlm"

    @property
    def model_flag(self) -> str:
        """See `RunArguments.model_flag`."""
        return "--config-name" if self.model is None else "--model"

    @property
    def tokenizer_flag(self) -> str:
        """See `RunArguments.tokenizer_flag`."""
        return self.model_flag if self.tokenizer is None else "--tokenizer"

    def check(self) -> None:
        """See `RunArguments.check`."""
        super().check()
        expect_one_of(self, "documents", DOCUMENTS)
        expect(self.max_length is not None, self, "max_length", "a number")
        expect(0 <= self.long_share <= 1, self, "long_share", "a share from 0 to 1")
        expect(self.long_length >= 3, self, "long_length", "at least 3: [CLS], a token and [SEP]")
        expect(0 < self.mlm_probability < 1, self, "mlm_probability", "a share between 0 and 1")
        if (self.model is None) == (self.config_name is None):
            raise UsageError(
                "expected --model, to go on from its weights, or --config-name, for new ones; and not both"
            )
        if (self.train_file is None) == (self.dataset_name is None):
            raise UsageError("expected --train-file or --dataset-name, and not both")
        if self.documents != "line" and self.dataset_name is not None:
            raise UsageError("--documents: a row of a dataset of the hub is a document; expected --train-file with it")
        if self.long_share and self.long_length < self.max_length:
            raise UsageError(f"--long-length: expected at least --max-length, found {self.long_length}")
        if self.validation_file is not None and self.dataset_name is not None:
            raise UsageError("--validation-file: a dataset of the hub has its own; expected --train-file with it")
        if self.streaming and (self.dataset_name is None or self.max_train_examples is None):
            raise UsageError("--streaming: expected --dataset-name and --max-train-examples, where reading ends")
