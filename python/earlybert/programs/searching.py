"""The part of a run before its model is trained: a search, or what stands in its place, and the small model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import earlybert_kernels as ek

from .. import processes
from ..arguments import SCORES
from ..errors import UsageError
from ..loading import load_model
from ..search.drawing import draw, inverted_ticket, random_ticket
from ..search.result import SearchResult, write_scores, write_searched
from ..search.search import CHOICE, RULE, Search, SearchSettings
from ..training.checkpoints import Checkpoints
from ..training.data import EncodedExamples
from ..training.distillation import Distillation
from ..training.loop import TrainingLoop
from ..training.stopwatch import Stopwatch
from .budget import Budget, make_budget
from .preparation import Prepared, unit_counts
from .stages import Stages, TrainingStage
from .tracking import Tracking

logger = logging.getLogger(__name__)


class Searching:
    """What a run needs to have its ticket; its attributes are what the stages hand on to each other.

    Attributes:
        stages: makes the stages.
        searched: the examples that a search sees.
        checkpoints: saves loops.
        seconds: by what was done.
        search: what the search found; goes into checkpoints of the training stage and into metrics.json.
        ticket: what the model is cut to; None for the whole model.
        budget: what meets the arguments' target, if they have one.
        distillation: what the ticket's loss is made of, if that is asked for.
        warnings: sentences on what makes the results doubtful.
    """

    searched: EncodedExamples
    checkpoints: Checkpoints

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.args = prepared.args
        self.directory = prepared.directory
        self.device = prepared.device
        self.stages = Stages(self.args, prepared.dtype)
        self.tracking = Tracking(self.args.trackers, self.directory)
        self.seconds: dict[str, float] = {"train": 0.0}
        self.search: dict[str, Any] | None = None
        self.ticket = prepared.ticket
        self.budget: Budget | None = None
        self.distillation: Distillation | None = None
        self.warnings: list[str] = []
        self.head_counts, self.neuron_counts = unit_counts(prepared.config)

    def obtain_ticket(self, model: nn.Module, checkpoint: dict[str, Any] | None) -> None:
        """Searches if the run does, and leaves `model` compact, with the weights that it came with.

        A run of `--method search` leaves it whole, as the search has trained it.

        Args:
            model: whole, with the weights that the run begins with.
            checkpoint: where to go on, of a run that was interrupted.
        """
        done = None if checkpoint is None or checkpoint["stage"] == "search" else checkpoint
        if done is not None:
            self.warnings = list(done["warnings"])
        if self.args.method == "dense":
            self.seconds["search"] = 0.0
        elif done is not None:
            self.search = done["search"]
            self.ticket = ek.Ticket(**done["ticket"])
            self.budget = Budget(**done["budget"]) if done.get("budget") else None
            self.seconds["search"] = done["search_seconds"]
            ek.compact(model, self.ticket)
        else:
            self._obtain_budget(model, checkpoint)
            if self.args.searches:
                self.seconds["search"] = self._search(model, checkpoint)
            else:
                self.seconds["search"] = self._take_ticket(model)
            self._judge_budget()
        if self.args.distillation and self.args.method != "search":
            self.distillation = self._make_distillation()

    def read_model(self) -> PreTrainedModel:
        """The stock model that is to be trained, in float32 on the CPU.

        Raises:
            UsageError: its weights cannot be read.
        """
        prepared = self.prepared
        name = self.args.model_source
        return load_model(name, prepared.task, prepared.config, prepared.labels, seed=self.args.seed)

    def placed(self, model: PreTrainedModel) -> PreTrainedModel:
        """A stock model on the run's device, converted where the run is with kernels."""
        model = model.to(self.device)  # type: ignore[arg-type]  # a method that functools.wraps has hidden
        if self.args.kernels == "off":
            return model
        try:
            return ek.convert(model)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{self.prepared.origin}: {error}") from error

    def _obtain_budget(self, model: nn.Module, checkpoint: dict[str, Any] | None) -> None:
        """Finds out what meets the arguments' target, or reads it from a checkpoint of the search."""
        if not self.args.has_target or self.args.method == "search":
            return
        if checkpoint is not None:
            self.budget = Budget(**checkpoint["budget"])
        else:
            self.budget = make_budget(self.args, model, self._a_step(), self.device)

    def _judge_budget(self) -> None:
        """Adds to the budget what the ticket's speed-up has come to, and to the search's seconds what it took."""
        if self.budget is not None:
            assert self.ticket is not None
            self.budget.judge(self.ticket, lambda: self.placed(self.read_model()), self._a_step(), self.device)
            self.seconds["search"] += self.budget.seconds

    def _a_step(self) -> TrainingStage:
        """The training stage that a step is measured of."""
        return self.stages.training("measuring", self.searched, 1, self.args.input_length)

    @property
    def _rule(self) -> dict[str, Any]:
        """How many units are kept of what: the arguments' or, of a target, the budget's."""
        rule = {name: getattr(self.args, name) for name in RULE}
        return rule if self.budget is None else rule | self.budget.rule

    def _make_distillation(self) -> Distillation:
        """By the dense model that the search has come to, gates included."""
        teacher = self.read_model()
        found = self.prepared.search or SearchResult(self.directory, {})
        found.set_weights(teacher, "folded")
        args = self.args
        return Distillation(
            self.placed(teacher).eval(),
            args.distillation,
            args.distillation_temperature,
            args.distillation_hidden_states,
        )

    def _take_ticket(self, model: nn.Module) -> float:
        """Cuts the model to the ticket that was given, or to one of the search that was; returns seconds."""
        watch = Stopwatch(self.device)
        found = self.prepared.search
        with watch.running():
            if found is not None:
                self.ticket = self._draw_from(found)
                found.set_weights(model, self.args.ticket_weights)
            elif self.args.method == "random":
                assert self.ticket is not None
                self.ticket = self._random(self.ticket)
            assert self.ticket is not None
            ek.compact(model, self.ticket)
        return watch.seconds + (0.0 if found is None else found.metrics["seconds"]["search"])

    def _draw_from(self, found: SearchResult) -> ek.Ticket | None:
        """The ticket of another run's search, which becomes this one's."""
        self.search = found.metrics["search"]
        self.warnings += found.metrics["warnings"]
        scores = found.scores()
        processes.on_first(lambda: write_scores(self.directory, scores))
        own = scores[self.args.score]
        return self._chosen(draw(*own, **self._rule), *own)

    def _search(self, model: nn.Module, checkpoint: dict[str, Any] | None) -> float:
        """Trains with gates until the ticket is at rest or the time is up, draws, rewinds and cuts; returns seconds."""
        args, plan = self.args, self.stages.search(self.searched)
        search = Search(
            model,
            SearchSettings(
                max_steps=plan.settings.max_steps,
                interval=args.early_bird_interval,
                threshold=args.early_bird_threshold,
                patience=args.early_bird_patience,
                min_share=args.min_search_share,
                **self._rule,
                **{name: getattr(args, name) for name in CHOICE},
            ),
        )
        loop = TrainingLoop(
            model,
            plan.examples,
            plan.order,
            plan.settings,
            self.device,
            gates=search.gates,
            before_update=search.observe,
        )
        if checkpoint is not None:
            loop.load_state_dict(checkpoint["loop"])
            search.load_state_dict(checkpoint["search_state"])
        else:
            loop.seed()

        def after_step(step: int) -> bool:
            if search.after_step():
                return True
            # A run that goes on has begun with the same weights: its checkpoint is checked for that.
            self.checkpoints.after_step(
                loop,
                lambda: {
                    "stage": "search",
                    "search_state": search.state_dict(start=False),
                    "budget": self.budget and asdict(self.budget),
                    "tracking": self.tracking.state_dict(step),
                },
            )
            return False

        loop.run(after_step, lambda record: self.tracking.log_record(record, prefix="search_"))
        with loop.watch.running():
            self.ticket = self._chosen(search.draw(), *search.scores(args.score))
        self.search = {**search.record(), "step": loop.step, "log": loop.history}
        drawn_by, longest = self.search["drawn_by"], loop.settings.max_steps
        logger.info("ticket drawn by %s after %d of %d steps", drawn_by, loop.step, longest)
        self.warn_of_divergence(loop)
        processes.on_first(lambda: self._write_search(search))
        if args.gate_penalty == "proximal" and not any((gate == 0).any() for gate in search.gates):
            self.warn("no gate has reached 0 by proximal steps; try a higher --gate-learning-rate (1e-2) or --gate-l1")
        if self.ticket is None:
            search.close()
            return loop.watch.seconds
        with loop.watch.running():
            search.finish(self.ticket, weights=args.ticket_weights)
        return loop.watch.seconds

    def _chosen(
        self, drawn: ek.Ticket, head_scores: Sequence[Tensor], neuron_scores: Sequence[Tensor]
    ) -> ek.Ticket | None:
        """The method's ticket, given that of the best scores; None for a search alone."""
        choices = {
            "earlybert": lambda: drawn,
            "random": lambda: self._random(drawn),
            "inverted": lambda: inverted_ticket(drawn, head_scores, neuron_scores),
            "search": lambda: None,
        }
        return choices[self.args.method]()

    def _random(self, ticket: ek.Ticket) -> ek.Ticket:
        generator = torch.Generator().manual_seed(self.args.seed)
        return random_ticket(ticket, self.head_counts, self.neuron_counts, generator)

    def _write_search(self, search: Search) -> None:
        write_scores(self.directory, {name: search.scores(name) for name in SCORES})
        if self.ticket is None or self.args.distillation:
            write_searched(self.directory, search)

    def warn(self, warning: str) -> None:
        """Says what makes the results doubtful, now and in metrics.json."""
        logger.warning("%s", warning)
        self.warnings.append(warning)

    def warn_of_divergence(self, loop: TrainingLoop) -> None:
        """Warns if the loss has ended far above its start."""
        if (warning := loop.divergence()) is not None:
            self.warn(warning)
