"""A run: search, draw, rewind, compact, train, evaluate, save. What it trains on is for others to say."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .. import processes
from ..environment import commit
from ..files import json_bytes
from ..run_directory import input_sums
from ..training.checkpoints import Checkpoints, fingerprint
from ..training.data import EncodedExamples, check_fits, unknown_share
from ..training.interrupt import InterruptRequest
from ..training.loop import TrainingLoop
from ..training.stopwatch import Stopwatch
from .evaluations import Evaluations
from .preparation import Prepared
from .results import write_results
from .searching import Searching
from .stages import TrainingStage
from .verify import model_size

logger = logging.getLogger(__name__)

#: A larger share of tokens without a word is no text that the model can have learned to read.
MOST_UNKNOWN = 0.5


class Run(Searching, ABC):
    """One run."""

    def __init__(self, prepared: Prepared) -> None:
        super().__init__(prepared)
        self.interrupt = InterruptRequest()
        self.environment = prepared.environment
        self.commit = commit()  # now: the checkout may be another when the run is done
        self.inputs = input_sums(asdict(self.args))
        #: The records of the training stages that are done, their steps counted through.
        self.log: list[dict[str, Any]] = []
        self.evaluations = Evaluations(prepared, self.stages.pad_to(self.args.input_length), self._track_evaluation)

    @abstractmethod
    def read_examples(self) -> dict[str, EncodedExamples]:
        """By a name for a message, all that is trained on; the first is what the search sees."""

    @abstractmethod
    def training_stages(self) -> list[TrainingStage]:
        """The stages behind the search, the first of which begins with the weights that the run began with."""

    def held_out(self, encoded: Any) -> EncodedExamples:
        """An evaluation split as it is evaluated."""
        return encoded

    def predictions(self, model: nn.Module) -> dict[str, bytes]:
        """By the file's name, what the trained model says of other examples, if it is asked."""
        return {}

    def run(self) -> dict[str, Any]:
        """Does what is left to do, and returns what is in `metrics.json`."""
        if (finished := processes.on_first(self._finished)) is not None:
            logger.info("%s holds this run, finished", self.directory.path)
            return finished
        with self.directory.released():
            return self.execute()

    def _finished(self) -> dict[str, Any] | None:
        """What is in `metrics.json`, of a run that is to be continued and is finished."""
        if self.args.resume and self.directory.is_finished:
            return self.directory.read_finished(asdict(self.args))
        return None

    def execute(self) -> dict[str, Any]:
        """Does what is left to do of an unfinished run."""
        with self._timed("loading"), processes.together():
            model, weights = self._load_model()
        with self._timed("tokenizing"), processes.together():
            train = self.read_examples()
            evals = {n: self.held_out(self.encode(examples)) for n, examples in self.prepared.data.evals.items()}
        self.searched = next(iter(train.values()))
        if (share := unknown_share(self.prepared.tokenizer, self.searched)) > MOST_UNKNOWN:
            unknown = self.prepared.tokenizer.unk_token
            self.warn(
                f"{share:.0%} of the training examples' tokens are {unknown}: the tokenizer is made for other texts, "
                "or not this model's"
            )
        dense_parameters = model_size(model)
        inputs = {"the model's weights": weights, **self._inputs(train, evals)}

        # Not before all is there that the run needs: this removes an earlier run.
        processes.on_first(self._start)
        if (finished := processes.on_first(self._finished)) is not None:  # by another run, while this one was loading
            return finished
        self.directory.join(asdict(self.args))
        self.checkpoints = Checkpoints(
            self.directory, self.interrupt, self.args.checkpoint_steps, inputs=inputs, environment=self.environment
        )
        checkpoint = self.checkpoints.load()
        with self.tracking.running(asdict(self.args), None if checkpoint is None else checkpoint["tracking"]):
            with self.interrupt.listening():
                self.obtain_ticket(model, checkpoint)
                if self.args.method != "search":
                    self._train(model, evals, checkpoint)
            with self._timed("evaluation"):
                seconds = self.seconds["search"] + self.seconds["train"]
                judgement = self.evaluations.last(model, evals, self._train_steps, seconds)
            metrics = self._metrics(model, judgement.metrics, dense_parameters)
            self.tracking.log_results(metrics)
        files = {name: json_bytes(content) for name, content in judgement.files.items()} | self.predictions(model)
        results = (self.directory, metrics, model, self.prepared.tokenizer, self.ticket, files)
        processes.on_first(lambda: write_results(*results))
        return metrics

    def _start(self) -> None:
        args = self.args
        self.directory.start(asdict(args), resume=args.resume, overwrite=args.overwrite_output_dir)

    def encode(self, examples: Any, max_length: int | None = None) -> EncodedExamples:
        """A split as the model is given it, in sequences of at most `max_length` tokens (of the arguments')."""
        length = max_length or self.args.input_length
        encoded = self.prepared.task.encode(self.prepared.tokenizer, examples, length)
        check_fits(encoded, self.prepared.config)
        return encoded

    def _inputs(self, train: dict[str, EncodedExamples], evals: dict[str, EncodedExamples]) -> dict[str, str]:
        """Fingerprints of what the run has read, but for the model's weights."""
        config = self.prepared.config.to_dict()
        for field in ("transformers_version", "_name_or_path"):
            config.pop(field, None)
        ticket, search = self.prepared.ticket, self.prepared.search
        return {
            "the model's config": fingerprint(config),
            **{name: fingerprint(examples.contents()) for name, examples in train.items()},
            "the evaluation examples": fingerprint({name: examples.contents() for name, examples in evals.items()}),
            "the ticket": fingerprint(None if ticket is None else [ticket.heads, ticket.neurons]),
            "the search": fingerprint(None if search is None else search.metrics),
        }

    def _load_model(self) -> tuple[PreTrainedModel, str]:
        """The model on its device, and the fingerprint of its weights."""
        model = self.read_model()
        weights = fingerprint(model.state_dict())
        return self.placed(model), weights

    def _train(self, model: nn.Module, evals: dict[str, EncodedExamples], checkpoint: dict[str, Any] | None) -> None:
        """Goes through the training stages, from the one that the checkpoint is of."""
        stages = self.training_stages()
        names = [stage.settings.name for stage in stages]
        first = 0
        if checkpoint is not None and checkpoint["stage"] in names:
            first = names.index(checkpoint["stage"])
            self.log, self.seconds["train"] = checkpoint["log"], checkpoint["train_seconds"]
            self.evaluations.load_state_dict(checkpoint["evaluations"])
        else:
            checkpoint = None
        for number in range(first, len(stages)):
            if number > first and self.evaluations.are_past_the_best:
                break
            begin = sum(stage.settings.max_steps for stage in stages[:number])
            is_last = number == len(stages) - 1
            loop = self._train_stage(model, stages[number], begin, is_last, evals, checkpoint)
            self.log = self.log + [{**record, "step": record["step"] + begin} for record in loop.history]
            self.seconds["train"] += loop.watch.seconds
            checkpoint = None

    def _train_stage(
        self,
        model: nn.Module,
        stage: TrainingStage,
        begin: int,
        is_last: bool,
        evals: dict[str, EncodedExamples],
        checkpoint: dict[str, Any] | None,
    ) -> TrainingLoop:
        """Trains one stage, from its beginning or from a checkpoint of it.

        Args:
            model: as the stage before has left it.
            stage: what to do.
            begin: optimizer steps of the training stages before.
            is_last: whether it is the last, whose end is evaluated anyway.
            evals: what the model is judged on meanwhile.
            checkpoint: of this stage.
        """
        loop = TrainingLoop(
            model, stage.examples, stage.order, stage.settings, self.device, distillation=self.distillation
        )
        if checkpoint is not None:
            loop.load_state_dict(checkpoint["loop"])
        else:
            loop.seed()
            if self.search is not None or begin:
                self.checkpoints.save(loop, self._progress(stage, begin))

        steps = {"no": 0, "steps": self.args.eval_steps, "epoch": loop.order.steps_per_epoch}
        interval = steps[self.args.eval_strategy]

        def after_step(step: int) -> bool:
            is_end = is_last and step == stage.settings.max_steps
            if interval and (begin + step) % interval == 0 and not is_end:
                with loop.watch.paused():
                    seconds = self.seconds["search"] + self.seconds["train"] + loop.watch.seconds
                    self.evaluations.add(model, evals, begin + step, seconds)
            self.checkpoints.after_step(loop, lambda: self._progress(stage, begin + step))
            return self.evaluations.are_past_the_best

        if not self.evaluations.are_past_the_best:
            loop.run(after_step, lambda record: self.tracking.log_record(record, begin=self._search_steps + begin))
        self.checkpoints.save(loop, self._progress(stage, begin + loop.step))
        self.warn_of_divergence(loop)
        return loop

    def _progress(self, stage: TrainingStage, step: int) -> dict[str, Any]:
        """What a checkpoint of a training stage has beside its loop, after so many steps of all training stages."""
        parts = ("heads", "neurons", "heads_of", "neurons_of")
        return {
            "stage": stage.settings.name,
            "search": self.search,
            "search_seconds": self.seconds["search"],
            "budget": self.budget and asdict(self.budget),
            "ticket": None if self.ticket is None else {name: getattr(self.ticket, name) for name in parts},
            "warnings": list(self.warnings),
            "log": self.log,
            "train_seconds": self.seconds["train"],
            "evaluations": self.evaluations.state_dict(),
            "tracking": self.tracking.state_dict(self._search_steps + step),
        }

    @property
    def _search_steps(self) -> int:
        """Optimizer steps of the search, which trackers count before those of training."""
        return 0 if self.search is None else self.search["step"]

    @property
    def _train_steps(self) -> int:
        """Optimizer steps of all training stages so far."""
        return self.log[-1]["step"] if self.log else 0

    def _track_evaluation(self, metrics: dict[str, float], step: int) -> None:
        self.tracking.log_evaluation(metrics, self._search_steps + step)

    def _metrics(self, model: PreTrainedModel, results: dict[str, float], dense_parameters: int) -> dict[str, Any]:
        args, ticket = self.args, self.ticket
        order = ("search", "train", "total", "loading", "tokenizing", "evaluation")
        seconds = self.seconds | {"total": self.seconds["search"] + self.seconds["train"]}
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": self.commit,
            "method": args.method,
            "task": self.prepared.task.name,
            "model": args.model_source,
            "seed": args.seed,
            "kernels": args.kernels,
            "eval": results,
            "main_metric": self.prepared.task.main_metric,
            "seconds": {name: seconds[name] for name in order},
            "steps": {"search": self._search_steps, "train": self._train_steps},
            "parameters": {"dense": dense_parameters, "trained": model_size(model)},
            "ticket": None if ticket is None else {
                "heads": [len(units) for units in ticket.heads],
                "neurons": [len(units) for units in ticket.neurons],
                "heads_of": self.head_counts,
                "neurons_of": self.neuron_counts,
            },
            "search": self.search,
            "budget": self.budget and asdict(self.budget),
            "train_log": self.log,
            "curve": self.evaluations.curve,
            "best": self.evaluations.best_record(),
            "warnings": [*self.warnings, *self.checkpoints.warnings()],
            "examples": {
                "train": len(self.prepared.data.train),
                "eval": {name or "dev": len(examples) for name, examples in self.prepared.data.evals.items()},
            },
            "arguments": asdict(args),
            "inputs": self.inputs,
            **self.environment,
        }  # fmt: skip

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        watch = Stopwatch(self.device)
        with watch.running():
            yield
        self.seconds[name] = watch.seconds
