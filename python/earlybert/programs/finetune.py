"""Fine-tuning on a task: search, draw, rewind, compact, train, evaluate, save."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import nn

import earlybert_kernels as ek

from ..arguments import FinetuneArguments
from ..errors import UsageError
from ..files import apply_umask, write_bytes, write_json
from ..loading import first_line, load_model
from ..search.drawing import gates_by_name, inverted_ticket, random_ticket
from ..search.stage import SearchSettings, SearchStage
from ..training.checkpoints import Checkpoints, fingerprint
from ..training.data import EncodedExamples, TrainingOrder, check_fits, unknown_share
from ..training.evaluation import predict
from ..training.interrupt import InterruptRequest
from ..training.loop import StageSettings, TrainingLoop
from ..training.stopwatch import Stopwatch
from .preparation import Prepared, prepare, unit_counts
from .verify import model_size

logger = logging.getLogger(__name__)

#: A larger share of tokens without a word is no text that the model can have learned to read.
MOST_UNKNOWN = 0.5


def finetune(args: FinetuneArguments) -> dict[str, Any]:
    """Fine-tunes a model by one of the methods and writes the run's folder.

    Args:
        args: what to do; see `FinetuneArguments`.

    Returns:
        What is in `metrics.json`:

        - `eval`: the task's metrics on the development set, `main_metric` the name of the first among them.
        - `seconds`: of the stages. `search` is everything that it takes to have the small model: training
          with gates, looking at tickets, drawing, rewinding and compacting. `train` is the training stage and
          `total` the sum of both. `loading`, `tokenizing` and `evaluation` are in none of them.
        - `steps`: optimizer steps of `search` and `train`.
        - `parameters`: of the model as it was (`dense`) and as it was trained (`trained`).
        - `ticket`: kept heads and neurons per layer, None for a dense run.
        - `warnings`: sentences on what makes the results doubtful.
        - `search`: whether the early bird was seen or the limit reached, at which step, and every comparison.

    Raises:
        UsageError: (a ValueError) the run cannot be done as asked; before anything is written, and, unless it
            is for the model's weights or for examples that its tokenizer cannot cut up, before anything is loaded.
        FloatingPointError: the loss, or an output of the trained model, is not finite.
        Interrupted: on SIGINT or SIGTERM while training, after a checkpoint has been written.
    """
    prepared = prepare(args)
    directory = prepared.directory
    if prepared.args.resume and directory.is_finished:
        logger.info("%s holds this run, finished", directory.path)
        return directory.read_finished()
    with directory.released():
        return _Run(prepared).execute()


class _Run:
    """One run; its attributes are what the stages hand on to each other."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.args = prepared.args
        self.directory = prepared.directory
        self.device = prepared.device
        self.pad_to = self.args.max_length if self.args.padding == "max_length" else None
        self.interrupt = InterruptRequest()
        self.environment = prepared.environment
        self.seconds: dict[str, float] = {}
        #: What the search found; goes into checkpoints of the training stage and into metrics.json.
        self.search: dict[str, Any] | None = None
        self.warnings: list[str] = []
        self.ticket = prepared.ticket
        self.head_counts, self.neuron_counts = unit_counts(prepared.config)

    def execute(self) -> dict[str, Any]:
        with self._timed("loading"):
            model, weights = self._load_model()
        with self._timed("tokenizing"):
            train = self._encode(self.prepared.data.train)
            evals = {name: self._encode(examples) for name, examples in self.prepared.data.evals.items()}
        if (share := unknown_share(self.prepared.tokenizer, train)) > MOST_UNKNOWN:
            unknown = self.prepared.tokenizer.unk_token
            self._warn(
                f"{share:.0%} of the training examples' tokens are {unknown}: the tokenizer is made for other texts, "
                "or not this model's"
            )
        self.order = TrainingOrder(
            len(train),
            batch_size=self.args.batch_size,
            accumulation_steps=self.args.gradient_accumulation_steps,
            seed=self.args.seed,
        )
        dense_parameters = model_size(model)
        inputs = {"the model's weights": weights, **self._inputs(train, evals)}

        # Not before all is there that the run needs: this removes an earlier run.
        self.directory.start(asdict(self.args), resume=self.args.resume, overwrite=self.args.overwrite_output_dir)
        if self.args.resume and self.directory.is_finished:  # by another process, while this one was loading
            return self.directory.read_finished()
        self.checkpoints = Checkpoints(
            self.directory, self.interrupt, self.args.checkpoint_steps, inputs=inputs, environment=self.environment
        )
        checkpoint = self.checkpoints.load()
        with self.interrupt.listening():
            self._obtain_ticket(model, train, checkpoint)
            loop = self._train(model, train, checkpoint)
        with self._timed("evaluation"):
            results, said = self._evaluate(model, evals)
        metrics = self._metrics(model, loop, results, dense_parameters)
        self._write(model, metrics, said)
        return metrics

    def _encode(self, examples: Any) -> EncodedExamples:
        encoded = self.prepared.task.encode(self.prepared.tokenizer, examples, self.args.max_length)
        check_fits(encoded, self.prepared.config)
        return encoded

    def _inputs(self, train: EncodedExamples, evals: dict[str, EncodedExamples]) -> dict[str, str]:
        """Fingerprints of what the run has read, but for the model's weights."""
        config = self.prepared.config.to_dict()
        for field in ("transformers_version", "_name_or_path"):
            config.pop(field, None)
        ticket = self.prepared.ticket
        return {
            "the model's config": fingerprint(config),
            "the training examples": fingerprint(train.features, train.targets),
            "the evaluation examples": fingerprint({n: [e.features, e.targets] for n, e in evals.items()}),
            "the ticket": fingerprint(None if ticket is None else [ticket.heads, ticket.neurons]),
        }

    def _load_model(self) -> tuple[nn.Module, str]:
        """The model on its device, and the fingerprint of its weights."""
        args, prepared = self.args, self.prepared
        model = load_model(args.model, prepared.task, prepared.config, prepared.labels, seed=args.seed)
        weights = fingerprint(model.state_dict())
        model = model.to(self.device)
        if self.args.kernels == "off":
            return model, weights
        try:
            return ek.convert(model), weights
        except (TypeError, ValueError) as error:
            raise UsageError(f"--model {args.model}: {error}") from error

    def _obtain_ticket(self, model: nn.Module, train: EncodedExamples, checkpoint: dict[str, Any] | None) -> None:
        """Searches if the run does, and leaves `model` compact, with the weights that it came with."""
        if self.args.method == "dense":
            self.seconds["search"] = 0.0
            return
        if checkpoint is not None and checkpoint["stage"] == "train":
            self.search = checkpoint["search"]
            self.ticket = ek.Ticket(**checkpoint["ticket"])
            self.warnings = list(checkpoint["warnings"])
            self.seconds["search"] = checkpoint["search_seconds"]
            ek.compact(model, self.ticket)
            return
        watch = Stopwatch(self.device)
        if self.args.searches:
            watch = self._search(model, train, checkpoint)
        elif self.args.method == "random":
            self.ticket = self._random(self.ticket)
        with watch.running():
            ek.compact(model, self.ticket)
        self.seconds["search"] = watch.seconds

    def _search(self, model: nn.Module, train: EncodedExamples, checkpoint: dict[str, Any] | None) -> Stopwatch:
        """Trains with gates until the ticket is at rest or the time is up, draws and rewinds; returns its clock."""
        args = self.args
        max_steps = args.search_steps or max(1, round(args.search_epochs * self.order.steps_per_epoch))
        stage = SearchStage(
            model,
            SearchSettings(
                max_steps=max_steps,
                head_ratio=args.head_ratio,
                neuron_ratio=args.neuron_ratio,
                interval=args.early_bird_interval,
                threshold=args.early_bird_threshold,
                patience=args.early_bird_patience,
                min_share=args.min_search_share,
            ),
        )
        settings = StageSettings(
            name="search",
            max_steps=max_steps,
            learning_rate=args.search_learning_rate,
            schedule="constant",
            weight_decay=args.weight_decay,
            gate_learning_rate=args.gate_learning_rate,
            gate_l1=args.gate_l1,
            dtype=self.prepared.dtype,
            pad_to=self.pad_to,
            cuda_graphs=args.cuda_graphs == "auto",
        )
        loop = TrainingLoop(model, train, self.order, settings, self.device, gates=stage.gates)
        if checkpoint is not None:
            loop.load_state_dict(checkpoint["loop"])
            stage.load_state_dict(checkpoint["detector"])
        else:
            torch.manual_seed(args.seed)  # dropout

        def after_step(step: int) -> bool:
            if stage.after_step(step):
                return True
            self.checkpoints.after_step(loop, lambda: {"stage": "search", "detector": stage.state_dict()})
            return False

        loop.run(after_step)
        with loop.watch.running():
            drawn = stage.draw()
        gates = stage.head_gates, stage.neuron_gates
        self.ticket = {
            "earlybert": lambda: drawn,
            "random": lambda: self._random(drawn),
            "inverted": lambda: inverted_ticket(drawn, *gates),
        }[args.method]()
        self.search = {**stage.record(), "step": loop.step, "log": loop.history}
        logger.info("ticket drawn by %s after %d of %d steps", self.search["drawn_by"], loop.step, max_steps)
        self._warn_of_divergence(loop)
        write_bytes(self.directory.gates, save(gates_by_name(*gates)))
        with loop.watch.running():
            stage.rewind()
        return loop.watch

    def _random(self, ticket: ek.Ticket) -> ek.Ticket:
        generator = torch.Generator().manual_seed(self.args.seed)
        return random_ticket(ticket, self.head_counts, self.neuron_counts, generator)

    def _train(self, model: nn.Module, train: EncodedExamples, checkpoint: dict[str, Any] | None) -> TrainingLoop:
        args = self.args
        max_steps = args.max_steps or max(1, round(args.num_train_epochs * self.order.steps_per_epoch))
        settings = StageSettings(
            name="train",
            max_steps=max_steps,
            learning_rate=args.learning_rate,
            schedule="linear",
            warmup_steps=round(args.warmup_ratio * max_steps),
            weight_decay=args.weight_decay,
            dtype=self.prepared.dtype,
            pad_to=self.pad_to,
            cuda_graphs=args.cuda_graphs == "auto",
        )
        loop = TrainingLoop(model, train, self.order, settings, self.device)
        extra = {
            "stage": "train",
            "search": self.search,
            "search_seconds": self.seconds["search"],
            "ticket": None if self.ticket is None else {
                name: getattr(self.ticket, name) for name in ("heads", "neurons", "heads_of", "neurons_of")
            },
            "warnings": list(self.warnings),
        }
        if checkpoint is not None and checkpoint["stage"] == "train":
            loop.load_state_dict(checkpoint["loop"])
        else:
            torch.manual_seed(args.seed)  # dropout
            if self.search is not None:
                self.checkpoints.save(loop, extra)

        def after_step(step: int) -> bool:
            self.checkpoints.after_step(loop, lambda: extra)
            return False

        loop.run(after_step)
        self.checkpoints.save(loop, extra)
        self.seconds["train"] = loop.watch.seconds
        self._warn_of_divergence(loop)
        return loop

    def _evaluate(
        self, model: nn.Module, splits: dict[str, EncodedExamples]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """The task's metrics on every evaluation split, and by file what the model has said of the last.

        A metric is named as such on the first split, and `metric_<split>` on the others.
        """
        results, task = {}, self.prepared.task
        for name, encoded in splits.items():
            outputs = predict(
                model,
                encoded,
                task.outputs,
                batch_size=self.args.eval_batch_size,
                pad_to=self.pad_to,
                dtype=self.prepared.dtype,
                device=self.device,
            )
            judgement = task.score(outputs, encoded)
            results |= {f"{metric}_{name}" if name else metric: value for metric, value in judgement.metrics.items()}
        return results, judgement.files

    def _warn_of_divergence(self, loop: TrainingLoop) -> None:
        if (warning := loop.divergence()) is not None:
            self._warn(warning)

    def _warn(self, warning: str) -> None:
        logger.warning("%s", warning)
        self.warnings.append(warning)

    def _metrics(
        self, model: nn.Module, loop: TrainingLoop, results: dict[str, float], dense_parameters: int
    ) -> dict[str, Any]:
        args, ticket = self.args, self.ticket
        order = ("search", "train", "total", "loading", "tokenizing", "evaluation")
        seconds = self.seconds | {"total": self.seconds["search"] + self.seconds["train"]}
        return {
            "method": args.method,
            "task": args.task,
            "model": args.model,
            "seed": args.seed,
            "kernels": args.kernels,
            "eval": results,
            "main_metric": self.prepared.task.main_metric,
            "seconds": {name: seconds[name] for name in order},
            "steps": {"search": 0 if self.search is None else self.search["step"], "train": loop.step},
            "parameters": {"dense": dense_parameters, "trained": model_size(model)},
            "ticket": None if ticket is None else {
                "heads": [len(units) for units in ticket.heads],
                "neurons": [len(units) for units in ticket.neurons],
                "heads_of": self.head_counts,
                "neurons_of": self.neuron_counts,
            },
            "search": self.search,
            "train_log": loop.history,
            "warnings": [*self.warnings, *self.checkpoints.warnings()],
            "examples": {
                "train": len(self.prepared.data.train),
                "eval": {name or "dev": len(examples) for name, examples in self.prepared.data.evals.items()},
            },
            "arguments": asdict(args),
            **self.environment,
        }  # fmt: skip

    def _write(self, model: nn.Module, metrics: dict[str, Any], said: dict[str, Any]) -> None:
        from .plots import plot_run  # matplotlib takes a second

        try:
            model.save_pretrained(self.directory.model)
        except SafetensorError as error:
            raise OSError(f"{self.directory.model}: the model cannot be written there: {first_line(error)}") from None
        self.prepared.tokenizer.save_pretrained(self.directory.model)
        for path in self.directory.model.iterdir():
            apply_umask(path)  # safetensors makes its files readable for their owner alone
        for name, content in said.items():
            write_json(self.directory.path / name, content)
        if self.ticket is not None:
            self.ticket.save(self.directory.ticket)
        plot_run(self.directory, metrics, self.ticket)
        self.directory.finish(metrics)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        watch = Stopwatch(self.device)
        with watch.running():
            yield
        self.seconds[name] = watch.seconds
