"""What a run can be told: the API and the command line in one. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from .errors import UsageError

METHODS = ("earlybert", "dense", "random", "inverted")
KERNELS = ("auto", "off")
CUDA_GRAPHS = ("auto", "off")
#: So that steps can be counted, and that what float32 makes of a rate is a number.
_MOST_EPOCHS, _HIGHEST_RATE = 1e9, 1e30
PADDINGS = ("none", "longest", "max_length")
#: Arguments that only some tasks know; see `Task.with_options`.
TASK_OPTIONS = (
    "doc_stride",
    "null_score_diff_threshold",
    "text_column",
    "text_pair_column",
    "label_column",
    "label_columns",
    "metrics",
)
OPTIMIZERS = ("adamw", "lamb")
#: Those of `transformers.get_scheduler` that need to know no more than the steps, of warm-up and of all.
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
    "constant_with_warmup",
    "constant",
)
TRACKERS = ("tensorboard", "wandb", "mlflow")
DOCUMENTS = ("line", "blank-line")
DTYPES = ("float32", "bfloat16", "float16")
EVAL_STRATEGIES = ("no", "steps", "epoch")


def _help(text: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """What every run can be told, whatever it trains on."""

    output_dir: str = field(metadata={"help": "Folder for metrics.json, ticket.json, the trained model and plots."})
    method: Literal["earlybert", "dense", "random", "inverted"] = _help(
        "earlybert: search, draw and train a ticket. dense: train the whole model. random, inverted: train a "
        "ticket of the drawn one's widths with random units, or with those of the smallest gates.",
        "earlybert",
    )
    kernels: Literal["auto", "off"] = _help("auto: this library's fused layers. off: stock transformers.", "auto")
    cuda_graphs: Literal["auto", "off"] = _help(
        "auto: on a GPU, training steps of --kernels auto are captured in CUDA graphs where they can be (not in "
        "float16, for regression and multilabel, or with --gradient-accumulation-steps). off: never.",
        "auto",
    )
    padding: Literal["none", "longest", "max_length"] | None = _help(
        "none: batches are packed, without padding, as --kernels auto always has them. longest, max_length: stock "
        "batches are padded to the longest example or to --max-length. Default: none with --kernels auto, longest "
        "with --kernels off."
    )
    ticket: str | None = _help("Train this ticket (a ticket.json, or a run's folder) instead of searching for one.")

    seed: int = _help("Seed of new weights, the order of the data, dropout and random tickets.", 42)
    device: str | None = _help("Device as torch names it. Default: cuda where there is one, else cpu.")
    dtype: Literal["float32", "bfloat16", "float16"] = _help(
        "What the model computes in (autocast); parameters and gates are float32.", "float32"
    )

    max_train_examples: int | None = _help("Use only so many of the first training examples.")
    max_eval_examples: int | None = _help("Use only so many of the first evaluation examples.")
    max_length: int | None = _help("Cut examples to so many tokens.", 128)
    batch_size: int = _help("Examples in one forward pass of training.", 32)
    eval_batch_size: int = _help("Examples in one forward pass of evaluation.", 64)
    gradient_accumulation_steps: int = _help("Forward passes in one optimizer step.", 1)

    num_train_epochs: float | None = _help("Epochs of the training stage. Default: 3 for dense, 2 for tickets.")
    max_steps: int | None = _help("Optimizer steps of the training stage; replaces --num-train-epochs.")
    optim: Literal["adamw", "lamb"] = _help("Optimizer of all stages.", "adamw")
    learning_rate: float = _help("Highest learning rate of the training stage.", 4e-5)
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt", "constant_with_warmup", "constant"
    ] = _help("How the learning rate of the training stage moves, by transformers' names.", "linear")
    warmup_ratio: float = _help("Share of the training stage over which the learning rate rises from 0.", 0.0)
    warmup_steps: int | None = _help("Optimizer steps of that; replaces --warmup-ratio.")
    max_grad_norm: float = _help("Longer gradients of the weights are cut to this norm; 0 for never.", 1.0)
    weight_decay: float = _help("Weight decay of the weight matrices.", 0.0)

    search_epochs: float = _help("Longest search, in epochs.", 0.2)
    search_steps: int | None = _help("Longest search in optimizer steps; replaces --search-epochs.")
    search_learning_rate: float = _help("Constant learning rate of the weights in the search.", 2e-5)
    gate_learning_rate: float | None = _help("Learning rate of the gates. Default: --search-learning-rate.")
    gate_l1: float = _help("Weight of the L1 penalty on the gates.", 1e-4)
    head_ratio: float = _help("Share of the heads of each layer that are dropped.", 1 / 3)
    neuron_ratio: float = _help("Share of all feed-forward neurons that are dropped.", 0.4)
    early_bird_interval: int | None = _help(
        "Optimizer steps between two looks at the ticket while searching. Default: a twelfth of the longest search, "
        "at most 10."
    )
    early_bird_threshold: float = _help("Distance, as a share of chance level, below which a ticket is at rest.", 0.1)
    early_bird_patience: int = _help("Looks in a row at which the ticket has to be at rest to be drawn early.", 3)
    min_search_share: float = _help("Share of the longest search before which no ticket is drawn.", 0.25)

    eval_strategy: Literal["no", "steps", "epoch"] = _help(
        "When a model is evaluated while it trains, and not at the end alone: never, every --eval-steps, each epoch.",
        "no",
    )
    eval_steps: int = _help("Optimizer steps between two evaluations of --eval-strategy steps.", 500)
    load_best_model_at_end: bool = _help("Keep the best of the models that were evaluated, and not the last.", False)
    metric_for_best_model: str | None = _help(
        "The metric that decides which is best, with --load-best-model-at-end or --early-stopping-patience. Default: "
        "the task's first."
    )
    early_stopping_patience: int | None = _help("Stop training after so many evaluations in a row that are no better.")
    logging_steps: int = _help("Optimizer steps between two records of loss and learning rate.", 25)
    report_to: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={"help": "Trackers that records, evaluations and arguments are sent to: tensorboard, wandb, mlflow."},
    )
    checkpoint_steps: int = _help("Optimizer steps between checkpoints; 0 for only at the end of a stage.", 500)
    resume: bool = _help("Continue the run in --output-dir; start it if there is none.", False)
    overwrite_output_dir: bool = _help("Replace the run in --output-dir.", False)

    @property
    def model_flag(self) -> str:
        """The flag that says where the model's config is."""
        return "--model"

    @property
    def tokenizer_flag(self) -> str:
        """The flag that says where the tokenizer is."""
        return self.model_flag

    @property
    def model_source(self) -> str:
        """Where the model's config is: a folder or a name of the hub."""
        return getattr(self, _name(self.model_flag))

    @property
    def tokenizer_source(self) -> str:
        """Where the tokenizer is, likewise."""
        return getattr(self, _name(self.tokenizer_flag))

    @property
    def searches(self) -> bool:
        """Whether the run has a search stage."""
        return self.method != "dense" and self.ticket is None

    @property
    def picks_best(self) -> bool:
        """Whether the models that are evaluated are compared."""
        return self.load_best_model_at_end or self.early_stopping_patience is not None

    @property
    def trackers(self) -> list[str]:
        """The trackers of `report_to`."""
        return [name for name in self.report_to if name != "none"]

    @property
    def input_length(self) -> int:
        """The `max_length` of arguments that are `resolved`."""
        if self.max_length is None:
            raise ValueError("max_length is the task's, which the arguments do not know: call resolved first")
        return self.max_length

    @property
    def epochs(self) -> float:
        """Epochs of the training stage."""
        if self.num_train_epochs is not None:
            return self.num_train_epochs
        return 3.0 if self.method == "dense" else 2.0

    def resolved(self, max_length: int) -> Self:
        """The same with every default filled in that depends on something else.

        Args:
            max_length: of the task.
        """
        max_length = max_length if self.max_length is None else self.max_length
        padding = self.padding or ("none" if self.kernels == "auto" else "longest")
        rate = self.search_learning_rate if self.gate_learning_rate is None else self.gate_learning_rate
        return replace(
            self, max_length=max_length, padding=padding, num_train_epochs=self.epochs, gate_learning_rate=rate
        )

    def check(self) -> None:
        """Checks every value by itself and against the others; reads no file.

        Raises:
            UsageError: naming the flag, what was expected and what was found.
        """
        for name, known in (("method", METHODS), ("kernels", KERNELS), ("cuda_graphs", CUDA_GRAPHS), ("dtype", DTYPES)):
            _expect_one_of(self, name, known)
        _expect_one_of(self, "padding", (None, *PADDINGS))
        _expect_one_of(self, "eval_strategy", EVAL_STRATEGIES)
        _expect_one_of(self, "optim", OPTIMIZERS)
        _expect_one_of(self, "lr_scheduler_type", SCHEDULES)
        for name in (
            "max_train_examples", "max_eval_examples", "batch_size", "eval_batch_size", "max_steps",
            "gradient_accumulation_steps", "search_steps", "early_bird_interval", "early_bird_patience",
            "eval_steps", "early_stopping_patience", "logging_steps",
        ):  # fmt: skip
            value = getattr(self, name)
            _expect(value is None or value >= 1, self, name, "at least 1")
        length = self.max_length
        _expect(length is None or length >= 3, self, "max_length", "at least 3: [CLS], a token and [SEP]")
        for name in ("checkpoint_steps", "warmup_steps"):
            value = getattr(self, name)
            _expect(value is None or value >= 0, self, name, "0 or more")
        _expect(0 <= self.seed < 2**32, self, "seed", "0 or more and less than 2**32")
        for name in ("num_train_epochs", "search_epochs"):
            value = getattr(self, name)
            _expect(value is None or 0 < value <= _MOST_EPOCHS, self, name, f"more than 0 and at most {_MOST_EPOCHS:g}")
        for name in ("learning_rate", "search_learning_rate", "gate_learning_rate"):
            value = getattr(self, name)
            holds = value is None or 0 < value <= _HIGHEST_RATE
            _expect(holds, self, name, f"more than 0 and at most {_HIGHEST_RATE:g}")
        for name in ("weight_decay", "gate_l1", "max_grad_norm"):
            _expect(0 <= getattr(self, name) <= _HIGHEST_RATE, self, name, f"0 or more and at most {_HIGHEST_RATE:g}")
        for name in ("head_ratio", "neuron_ratio", "early_bird_threshold", "warmup_ratio"):
            _expect(0 <= getattr(self, name) < 1, self, name, "a share from 0 to less than 1")
        _expect(0 <= self.min_search_share <= 1, self, "min_search_share", "a share from 0 to 1")

        if self.kernels == "off" and self.padding == "none":
            raise UsageError(
                "--padding none: stock modules compute padding like any token; use --padding longest, "
                "or --kernels auto, which leaves padding out"
            )
        if self.ticket is not None and self.method == "dense":
            raise UsageError("--ticket: --method dense trains the whole model and takes no ticket")
        if self.ticket is not None and self.method == "inverted":
            raise UsageError("--ticket: --method inverted needs the gates of a search, which a ticket does not hold")
        if self.eval_strategy == "no" and self.early_stopping_patience is not None:
            raise UsageError("--early-stopping-patience: expected --eval-strategy steps or epoch, to have evaluations")
        if self.eval_strategy == "no" and self.load_best_model_at_end:
            raise UsageError("--load-best-model-at-end: expected --eval-strategy steps or epoch, to have a choice")
        if self.metric_for_best_model is not None and not self.picks_best:
            raise UsageError(
                "--metric-for-best-model: expected --load-best-model-at-end or --early-stopping-patience with it"
            )
        if self.warmup_steps and self.lr_scheduler_type == "constant":
            raise UsageError(
                "--warmup-steps: schedule constant has none; give --lr-scheduler-type constant_with_warmup"
            )
        unknown = [name for name in self.report_to if name not in ("none", *TRACKERS)]
        if unknown or ("none" in self.report_to and self.trackers):
            raise UsageError(
                f"--report-to: expected none, or of {', '.join(TRACKERS)}; found {' '.join(self.report_to)}"
            )
        if self.resume and self.overwrite_output_dir:
            raise UsageError(
                "--resume and --overwrite-output-dir exclude each other: one continues what the other removes"
            )


@dataclass(frozen=True, kw_only=True)
class _OfTasks:
    """What a task is, and where its examples are; listed before the rest."""

    model: str = field(metadata={"help": "Folder or hub name of the model to start from."})
    task: str = _help(
        "Task on a table of your own: classification, regression, multilabel (any number of labels of a text) or "
        "token-classification (a tag for each word, such as named entities); a task of GLUE in lower case (sst2, cola, "
        "mrpc, ...), squad, squad_v2 or pydocs.",
        "classification",
    )
    train_file: str | None = _help(
        "The training file: a table with a header (.csv, .tsv, .jsonl, .json, .parquet), for token-classification also "
        "CoNLL's lines of a word and its tag (.conll); or one in the named task's format."
    )
    validation_file: str | None = _help("The evaluation file, likewise. Default: one row in ten is held out.")
    test_file: str | None = _help(
        "Write what the trained model says of this file's texts to test_predictions.jsonl, as earlybert predict does. "
        "It needs no labels."
    )
    do_predict: bool = _help(
        "Without --test-file: write what it says of the GLUE task's own test split to test_predictions.tsv, as GLUE "
        "wants it.",
        False,
    )
    text_column: str | None = _help(
        "The table's column with the texts, or for token-classification with lists of words. Default: the one named "
        "sentence or text, or tokens or words."
    )
    text_pair_column: str | None = _help("The column with second texts, if texts come in pairs.")
    label_column: str | None = _help(
        "The column with the labels: names, or whole numbers. Default: label. For multilabel, with lists of them; "
        "default: labels. For token-classification, with lists of tags, one for each word; default: ner_tags or tags."
    )
    label_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "multilabel: the columns of single labels, with 1 where a text has the label and 0 where not, in "
            "place of a column of lists, which .csv and .tsv cannot have."
        },
    )
    metrics: list[str] | None = field(
        default=None,
        metadata={
            "help": "Metrics of a table, the first of which runs are compared by. Default: accuracy f1_macro; for "
            "regression pearson mean_squared_error; for multilabel f1_micro f1_macro exact_match; for "
            "token-classification f1 precision recall (of entities) accuracy (of words)."
        },
    )
    dataset_name: str | None = _help("A dataset of the hub, in place of --train-file.")
    dataset_config_name: str | None = _help("Its configuration.")
    data_dir: str | None = _help(
        "Folder with the named task's files as they are distributed, or a dataset saved by datasets. Default, for "
        "a named task: read from the hub."
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneArguments(RunArguments, _OfTasks):
    """The arguments of `earlybert.finetune` and the flags of `earlybert finetune`.

    The defaults are the paper's for GLUE (arXiv 2101.00063, section 4.1) where it gives one.
    """

    max_length: int | None = _help(
        "Tokens that the model is given at once: longer examples are cut, contexts of questions into windows. "
        "Default: 128, for squad 384."
    )
    doc_stride: int | None = _help(
        "squad: tokens that neighbouring windows on a long context share. Default: a third of --max-length."
    )
    null_score_diff_threshold: float | None = _help(
        "squad_v2: a question is left unanswered where that scores more than so much above its best answer. Default: 0."
    )

    def check(self) -> None:
        """See `RunArguments.check`."""
        super().check()
        if self.task == "mlm":
            raise UsageError("--task mlm: masked words are pre-trained on, by earlybert pretrain")
        stride, threshold = self.doc_stride, self.null_score_diff_threshold
        _expect(stride is None or stride >= 0, self, "doc_stride", "0 or more")
        _expect(threshold is None or math.isfinite(threshold), self, "null_score_diff_threshold", "a finite number")


@dataclass(frozen=True, kw_only=True)
class _OfTexts:
    """What is pre-trained, and on what; listed before the rest."""

    model: str | None = _help("Folder or hub name of a model to go on from. Give this or --config-name.")
    config_name: str | None = _help("Folder or hub name of a model whose config.json is that of a new one.")
    tokenizer: str | None = _help("Folder or hub name of the tokenizer. Default: that of --model or --config-name.")
    train_file: str | None = _help("Text file in UTF-8. Give this or --dataset-name.")
    validation_file: str | None = _help(
        "Text file to evaluate on. Default: one in twenty documents, at most 1,000, are held out."
    )
    documents: Literal["line", "blank-line"] = _help(
        "line: every line of a text file is a document. blank-line: documents are separated by blank lines.", "line"
    )
    dataset_name: str | None = _help("A dataset of the hub with a split train, and perhaps one named validation.")
    dataset_config_name: str | None = _help("Its configuration.")
    text_column: str = _help("Its column with the texts.", "text")
    streaming: bool = _help("Read no more of it than --max-train-examples documents.", False)


@dataclass(frozen=True, kw_only=True)
class PretrainArguments(RunArguments, _OfTexts):
    """The arguments of `earlybert.pretrain` and the flags of `earlybert pretrain`. Examples are documents here."""

    batch_size: int = _help("Sequences in one forward pass of training.", 32)
    eval_batch_size: int = _help("Sequences in one forward pass of evaluation.", 32)
    max_train_examples: int | None = _help("Use only so many of the first training documents.")
    max_eval_examples: int | None = _help("Use only so many of the first evaluation documents.")
    max_length: int = _help("Cut documents into sequences of so many tokens.", 128)
    long_length: int = _help("Tokens of a sequence in the last part of training.", 512)
    long_share: float = _help("Share of the training stage's steps that is trained on the longer sequences.", 0.1)
    mlm_probability: float = _help("Share of the tokens that are to be guessed.", 0.15)
    whole_words: bool = _help("Hide all tokens of a word together.", False)
    optim: Literal["adamw", "lamb"] = field(
        default="lamb", metadata={"aliases": ["--optimizer"], "help": "Optimizer of all stages."}
    )
    learning_rate: float = _help("Highest learning rate of the training stage.", 2e-3)
    warmup_ratio: float = _help("Share of the training stage over which the learning rate rises from 0.", 0.1)
    weight_decay: float = _help("Weight decay of the weight matrices.", 0.01)
    search_learning_rate: float = _help("Constant learning rate of the weights in the search.", 1e-3)
    eval_strategy: Literal["no", "steps", "epoch"] = _help(
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
        _expect_one_of(self, "documents", DOCUMENTS)
        _expect(self.max_length is not None, self, "max_length", "a number")
        _expect(0 <= self.long_share <= 1, self, "long_share", "a share from 0 to 1")
        _expect(self.long_length >= 3, self, "long_length", "at least 3: [CLS], a token and [SEP]")
        _expect(0 < self.mlm_probability < 1, self, "mlm_probability", "a share between 0 and 1")
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


def flag(name: str) -> str:
    """The command-line flag of an argument: `max_steps` -> `--max-steps`."""
    return "--" + name.replace("_", "-")


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _expect_one_of(args: RunArguments, name: str, known: tuple[str | None, ...]) -> None:
    _expect(getattr(args, name) in known, args, name, "one of " + ", ".join(filter(None, known)))


def _expect(holds: bool, args: RunArguments, name: str, expected: str) -> None:
    if not holds:
        raise UsageError(f"{flag(name)}: expected {expected}, found {getattr(args, name)}")
