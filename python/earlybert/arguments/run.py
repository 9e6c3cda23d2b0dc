"""What every run can be told, whatever it trains on."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Literal, Self

from ..errors import UsageError

METHODS = ("earlybert", "dense", "random", "inverted", "search")
KERNELS = ("auto", "off")
CUDA_GRAPHS = ("auto", "off")
#: So that steps can be counted, and that what float32 makes of a rate is a number.
_MOST_EPOCHS, _HIGHEST_RATE = 1e9, 1e30
PADDINGS = ("none", "longest", "max_length")
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
SCOPES = ("layer", "global", "mixed")
#: What units are drawn by; `search.scores.Scorer` says what each is.
SCORES = ("gate", "gate-norm", "first-order", "fisher", "magnitude")
TICKET_WEIGHTS = ("start", "searched", "folded")
GATE_PENALTIES = ("subgradient", "proximal")
TRACKERS = ("tensorboard", "wandb", "mlflow")
DTYPES = ("float32", "bfloat16", "float16")
EVAL_STRATEGIES = ("no", "steps", "epoch")


def help_field(text: str, default: Any = None) -> Any:
    """A field with a line of `--help`."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """What every run can be told, whatever it trains on."""

    output_dir: str = field(metadata={"help": "Folder for metrics.json, ticket.json, the trained model and plots."})
    method: Literal["earlybert", "dense", "random", "inverted", "search"] = help_field(
        "earlybert: search, draw and train a ticket. dense: train the whole model. random, inverted: train a "
        "ticket of the drawn one's widths with random units, or with those of the smallest gates. search: the search "
        "alone, from which others draw their tickets (--search-from).",
        "earlybert",
    )
    kernels: Literal["auto", "off"] = help_field("auto: this library's fused layers. off: stock transformers.", "auto")
    cuda_graphs: Literal["auto", "off"] = help_field(
        "auto: on a GPU, training steps of --kernels auto are captured in CUDA graphs where they can be (not in "
        "float16, for regression and multilabel, or with --gradient-accumulation-steps). off: never.",
        "auto",
    )
    padding: Literal["none", "longest", "max_length"] | None = help_field(
        "none: batches are packed, without padding, as --kernels auto always has them. longest, max_length: stock "
        "batches are padded to the longest example or to --max-length. Default: none with --kernels auto, longest "
        "with --kernels off."
    )
    ticket: str | None = help_field(
        "Train this ticket (a ticket.json, or a run's folder) instead of searching for one."
    )
    search_from: str | None = help_field(
        "Draw the ticket from the search in this folder of a run of --method search, whose seconds count, instead of "
        "searching."
    )
    discard_model: bool = help_field("Do not write the trained model.", False)

    seed: int = help_field("Seed of new weights, the order of the data, dropout and random tickets.", 42)
    device: str | None = help_field("Device as torch names it. Default: cuda where there is one, else cpu.")
    dtype: Literal["float32", "bfloat16", "float16"] = help_field(
        "What the model computes in (autocast); parameters and gates are float32.", "float32"
    )

    max_train_examples: int | None = help_field("Use only so many of the first training examples.")
    max_eval_examples: int | None = help_field("Use only so many of the first evaluation examples.")
    max_length: int | None = help_field("Cut examples to so many tokens.", 128)
    batch_size: int = help_field("Examples in one forward pass of training, of all processes together.", 32)
    eval_batch_size: int = help_field("Examples in one forward pass of evaluation.", 64)
    gradient_accumulation_steps: int = help_field("Forward passes in one optimizer step.", 1)

    num_train_epochs: float | None = help_field(
        "Epochs of the training stage. Default: 3 for dense, --ticket-epochs for tickets."
    )
    ticket_epochs: float = help_field("Those of a ticket's, where --num-train-epochs does not say how many.", 2.0)
    max_steps: int | None = help_field("Optimizer steps of the training stage; replaces --num-train-epochs.")
    optim: Literal["adamw", "lamb"] = help_field("Optimizer of all stages.", "adamw")
    learning_rate: float = help_field("Highest learning rate of the training stage.", 4e-5)
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt", "constant_with_warmup", "constant"
    ] = help_field("How the learning rate of the training stage moves, by transformers' names.", "linear")
    warmup_ratio: float = help_field("Share of the training stage over which the learning rate rises from 0.", 0.0)
    warmup_steps: int | None = help_field("Optimizer steps of that; replaces --warmup-ratio.")
    max_grad_norm: float = help_field("Longer gradients of the weights are cut to this norm; 0 for never.", 1.0)
    weight_decay: float = help_field("Weight decay of the weight matrices.", 0.0)

    search_epochs: float = help_field("Longest search, in epochs.", 0.2)
    search_steps: int | None = help_field("Longest search in optimizer steps; replaces --search-epochs.")
    search_learning_rate: float = help_field("Constant learning rate of the weights in the search.", 2e-5)
    gate_learning_rate: float | None = help_field("Learning rate of the gates. Default: --search-learning-rate.")
    gate_l1: float = help_field("Weight of the L1 penalty on the gates.", 1e-4)
    gate_penalty: Literal["subgradient", "proximal"] = help_field(
        "How the penalty moves gates: subgradient adds its sign to their gradients, and no gate ends at 0; proximal "
        "shrinks them after each step, with a --gate-learning-rate of about 1e-2 to 0, and what the ticket drops of "
        "those is not computed from the next look on.",
        "subgradient",
    )
    head_ratio: float = help_field("Share of the heads of each layer that are dropped.", 1 / 3)
    neuron_ratio: float = help_field("Share of all feed-forward neurons that are dropped.", 0.4)
    head_scope: Literal["layer", "global", "mixed"] = help_field(
        "layer: the share of heads is dropped in each layer. global: of all layers together. mixed: each layer keeps "
        "the mean of what both would.",
        "layer",
    )
    neuron_scope: Literal["layer", "global", "mixed"] = help_field("The same of neurons.", "global")
    multiple_of: int = help_field("Keep a multiple of so many neurons in each layer.", 1)
    target_speedup: float | None = help_field(
        "Drop as much as makes the ticket's training step so many times as fast as the dense model's, as measured here "
        "before the search. --head-ratio and --neuron-ratio say how heads and neurons share that, and each layer keeps "
        "a multiple of 16 neurons, on a GPU of 64, unless --multiple-of says more."
    )
    target_parameters: float | None = help_field(
        "Drop as much as leaves this share of the dense model's parameters, likewise."
    )
    score: Literal["gate", "gate-norm", "first-order", "fisher", "magnitude"] = help_field(
        "What units are drawn by: their gates; gates times the norm of what a unit writes; how much the loss would "
        "change without it, to the first order or squared, summed over the search; or the norm of its weights.",
        "gate",
    )
    ticket_weights: Literal["start", "searched", "folded"] = help_field(
        "Weights that the ticket's training begins with: those of the search's beginning, those it has come to, or the "
        "same with the gates folded in.",
        "start",
    )
    rewind_steps: int = help_field("start is the search's weights after so many of its steps, in place of 0.", 0)
    distillation: float = help_field(
        "Share of the ticket's loss that is its distance to what the dense model says that the search has come to.", 0.0
    )
    distillation_temperature: float = help_field("What logits are divided by for that.", 2.0)
    distillation_hidden_states: bool = help_field("That distance is of all layers' hidden states as well.", False)
    early_bird_interval: int | None = help_field(
        "Optimizer steps between two looks at the ticket while searching. Default: a twelfth of the longest search, "
        "at most 10."
    )
    early_bird_threshold: float = help_field(
        "Distance, as a share of chance level, below which a ticket is at rest.", 0.1
    )
    early_bird_patience: int = help_field("Looks in a row at which the ticket has to be at rest to be drawn early.", 3)
    min_search_share: float = help_field("Share of the longest search before which no ticket is drawn.", 0.25)

    eval_strategy: Literal["no", "steps", "epoch"] = help_field(
        "When a model is evaluated while it trains, and not at the end alone: never, every --eval-steps, each epoch.",
        "no",
    )
    eval_steps: int = help_field("Optimizer steps between two evaluations of --eval-strategy steps.", 500)
    load_best_model_at_end: bool = help_field(
        "Keep the best of the models that were evaluated, and not the last.", False
    )
    metric_for_best_model: str | None = help_field(
        "The metric that decides which is best, with --load-best-model-at-end or --early-stopping-patience. Default: "
        "the task's first."
    )
    early_stopping_patience: int | None = help_field(
        "Stop training after so many evaluations in a row that are no better."
    )
    logging_steps: int = help_field("Optimizer steps between two records of loss and learning rate.", 25)
    report_to: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={"help": "Trackers that records, evaluations and arguments are sent to: tensorboard, wandb, mlflow."},
    )
    checkpoint_steps: int = help_field("Optimizer steps between checkpoints; 0 for only at the end of a stage.", 500)
    resume: bool = help_field("Continue the run in --output-dir; start it if there is none.", False)
    overwrite_output_dir: bool = help_field("Replace the run in --output-dir.", False)

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
        return self.method != "dense" and self.ticket is None and self.search_from is None

    @property
    def has_target(self) -> bool:
        """Whether how much is dropped follows from a target."""
        return self.target_speedup is not None or self.target_parameters is not None

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
        return 3.0 if self.method == "dense" else self.ticket_epochs

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
            expect_one_of(self, name, known)
        expect_one_of(self, "padding", (None, *PADDINGS))
        expect_one_of(self, "eval_strategy", EVAL_STRATEGIES)
        expect_one_of(self, "optim", OPTIMIZERS)
        expect_one_of(self, "lr_scheduler_type", SCHEDULES)
        for name, known in (
            ("head_scope", SCOPES), ("neuron_scope", SCOPES), ("score", SCORES), ("ticket_weights", TICKET_WEIGHTS),
            ("gate_penalty", GATE_PENALTIES),
        ):  # fmt: skip
            expect_one_of(self, name, known)
        for name in (
            "max_train_examples", "max_eval_examples", "batch_size", "eval_batch_size", "max_steps",
            "gradient_accumulation_steps", "search_steps", "early_bird_interval", "early_bird_patience",
            "eval_steps", "early_stopping_patience", "logging_steps", "multiple_of",
        ):  # fmt: skip
            value = getattr(self, name)
            expect(value is None or value >= 1, self, name, "at least 1")
        length = self.max_length
        expect(length is None or length >= 3, self, "max_length", "at least 3: [CLS], a token and [SEP]")
        for name in ("checkpoint_steps", "warmup_steps", "rewind_steps"):
            value = getattr(self, name)
            expect(value is None or value >= 0, self, name, "0 or more")
        expect(0 <= self.seed < 2**32, self, "seed", "0 or more and less than 2**32")
        for name in ("num_train_epochs", "ticket_epochs", "search_epochs"):
            value = getattr(self, name)
            expect(value is None or 0 < value <= _MOST_EPOCHS, self, name, f"more than 0 and at most {_MOST_EPOCHS:g}")
        for name in ("learning_rate", "search_learning_rate", "gate_learning_rate"):
            value = getattr(self, name)
            holds = value is None or 0 < value <= _HIGHEST_RATE
            expect(holds, self, name, f"more than 0 and at most {_HIGHEST_RATE:g}")
        for name in ("weight_decay", "gate_l1", "max_grad_norm"):
            expect(0 <= getattr(self, name) <= _HIGHEST_RATE, self, name, f"0 or more and at most {_HIGHEST_RATE:g}")
        for name in ("head_ratio", "neuron_ratio", "early_bird_threshold", "warmup_ratio"):
            expect(0 <= getattr(self, name) < 1, self, name, "a share from 0 to less than 1")
        for name in ("min_search_share", "distillation"):
            expect(0 <= getattr(self, name) <= 1, self, name, "a share from 0 to 1")
        speedup, parameters = self.target_speedup, self.target_parameters
        expect(speedup is None or 1 < speedup <= 1000, self, "target_speedup", "a number above 1")
        expect(parameters is None or 0 < parameters < 1, self, "target_parameters", "a share between 0 and 1")
        temperature = self.distillation_temperature
        expect(0 < temperature <= _HIGHEST_RATE, self, "distillation_temperature", "a number above 0")

        if self.kernels == "off" and self.padding == "none":
            raise UsageError(
                "--padding none: stock modules compute padding like any token; use --padding longest, "
                "or --kernels auto, which leaves padding out"
            )
        for name in ("ticket", "search_from"):
            if getattr(self, name) is not None and self.method in ("dense", "search"):
                raise UsageError(f"{flag(name)}: --method {self.method} trains the whole model and takes no ticket")
        if self.ticket is not None and (self.ticket_weights != "start" or self.distillation):
            name = "distillation" if self.distillation else "ticket_weights"
            raise UsageError(f"{flag(name)}: a given --ticket comes without the weights of a search; use --search-from")
        if self.ticket is not None and self.search_from is not None:
            raise UsageError("--ticket and --search-from exclude each other: each says where the ticket comes from")
        if self.distillation_hidden_states and not self.distillation:
            raise UsageError("--distillation-hidden-states: expected --distillation, the share of that distance")
        if self.has_target and self.ticket is not None:
            raise UsageError("--ticket: what a given ticket keeps is settled; no target can be met by it")
        if self.target_speedup is not None and self.target_parameters is not None:
            raise UsageError("--target-speedup and --target-parameters exclude each other: one cut meets one of them")
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


def defaults(cls: type[RunArguments]) -> dict[str, Any]:
    """By name, the defaults of all arguments that have one."""
    values = {
        each.name: each.default if each.default_factory is MISSING else each.default_factory() for each in fields(cls)
    }
    return {name: value for name, value in values.items() if value is not MISSING}


def flag(name: str) -> str:
    """The command-line flag of an argument: `max_steps` -> `--max-steps`."""
    return "--" + name.replace("_", "-")


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def expect_one_of(args: RunArguments, name: str, known: tuple[str | None, ...]) -> None:
    """Raises UsageError unless an argument's value is a known one."""
    expect(getattr(args, name) in known, args, name, "one of " + ", ".join(filter(None, known)))


def expect(holds: bool, args: RunArguments, name: str, expected: str) -> None:
    """Raises UsageError unless a condition on an argument holds."""
    if not holds:
        raise UsageError(f"{flag(name)}: expected {expected}, found {getattr(args, name)}")
