"""Meeting a target: how much is to be dropped for it, by what steps cost here, and whether that held."""

from __future__ import annotations

import copy
import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import nn

import earlybert_kernels as ek
from earlybert_kernels import Ticket
from earlybert_kernels.models import layer_parts

from .. import processes
from ..arguments import RunArguments
from ..search.budget import PREFERRED_MULTIPLE, Cost, fitted, kept_shares, parameter_cost
from ..search.drawing import random_ticket
from ..training.loop import TrainingLoop
from ..training.stopwatch import Stopwatch
from .stages import TrainingStage

logger = logging.getLogger(__name__)

#: The shares of heads and neurons that the tickets keep whose steps are measured beside the dense model's.
_MEASURED = ((0.5, 1.0), (1.0, 0.5), (0.5, 0.5))
#: Optimizer steps of each in one pass, by the kind of device, and those of them at the beginning that warm up: on a GPU
#: the first of every shape are captured.
_STEPS, _WARM_UP = {"cpu": 4, "cuda": 32}, {"cpu": 1, "cuda": 16}
#: Each is measured so often, in turn with the others.
_PASSES = 2


@dataclass
class Budget:
    """A target, and what it comes to.

    Attributes:
        target_speedup: the dense model's step over the ticket's; None where parameters are the target.
        target_parameters: parameters of the ticket over the dense model's; None likewise.
        head_ratio, neuron_ratio, multiple_of: the rule to draw by.
        rest, heads, neurons: the fitted `search.budget.Cost`, in dense steps or in parameters.
        predicted_speedup: of the ticket that was drawn, by the fitted cost; None where parameters are the target.
        measured_speedup: the same, measured in turn with the dense model before the ticket was trained.
        seconds: that the measurements took, which are part of the search's.
    """

    target_speedup: float | None
    target_parameters: float | None
    head_ratio: float
    neuron_ratio: float
    multiple_of: int
    rest: float
    heads: float
    neurons: float
    predicted_speedup: float | None = None
    measured_speedup: float | None = None
    seconds: float = 0.0

    @property
    def rule(self) -> dict[str, Any]:
        """The names of `draw`'s arguments, and what they are for the target."""
        return {name: getattr(self, name) for name in ("head_ratio", "neuron_ratio", "multiple_of")}

    @property
    def sentence(self) -> str:
        """What was asked for and what has come of it, where a speed-up was."""
        return (
            f"the ticket's training step: {self.target_speedup:.2f} times as fast as the dense model's asked for, "
            f"{self.predicted_speedup:.2f} predicted, {self.measured_speedup:.2f} measured"
        )

    def judge(
        self, ticket: Ticket, make_dense: Callable[[], nn.Module], stage: TrainingStage, device: torch.device
    ) -> None:
        """Adds what the ticket's speed-up is, predicted and measured.

        Args:
            ticket: the one that was drawn.
            make_dense: makes the model as it is before it is cut.
            stage: what a step is.
            device: where to train.
        """
        if self.target_speedup is None:
            return
        cost = Cost(self.rest, self.heads, self.neurons)
        self.predicted_speedup = cost.dense / cost.of(*kept_shares(ticket))
        dense, watch = make_dense(), Stopwatch(device)
        with watch.running():
            (share,) = _measured([ticket], dense, stage, device)
        self.measured_speedup = 1 / share
        self.seconds += watch.seconds
        logger.info("%s", self.sentence)


def make_budget(args: RunArguments, model: nn.Module, stage: TrainingStage, device: torch.device) -> Budget:
    """Finds out what to drop for the arguments' target.

    Args:
        args: with a target.
        model: whole, on `device`; is not changed.
        stage: what a step is.
        device: where to train.

    Raises:
        UsageError: no ticket meets the target.
    """
    watch = Stopwatch(device)
    counts = [parts.num_heads for _, parts in layer_parts(model)]
    with watch.running():
        if args.target_parameters is not None:
            cost, target, flag = parameter_cost(model), args.target_parameters, "--target-parameters"
        else:
            assert args.target_speedup is not None
            cost, target, flag = _step_cost(model, stage, device), 1 / args.target_speedup, "--target-speedup"
    heads, neurons = cost.ratios(target, args.head_ratio, args.neuron_ratio, counts, flag=flag)
    multiple = args.multiple_of if args.multiple_of > 1 else PREFERRED_MULTIPLE.get(device.type, 1)
    logger.info("%s: %.3f of the heads and %.3f of the neurons are to be dropped", flag, heads, neurons)
    return Budget(
        args.target_speedup, args.target_parameters, heads, neurons, multiple, **asdict(cost), seconds=watch.seconds
    )


def _step_cost(model: nn.Module, stage: TrainingStage, device: torch.device) -> Cost:
    """What a training step costs, where the dense model's is 1."""
    tickets = [_ticket_of(model, *shares) for shares in _MEASURED]
    costs = _measured(tickets, model, stage, device)
    return fitted([(1.0, 1.0), *map(kept_shares, tickets)], [1.0, *costs])


def _ticket_of(model: nn.Module, kept_heads: float, kept_neurons: float) -> Ticket:
    """Any ticket that keeps these shares in each layer."""
    parts = [parts for _, parts in layer_parts(model)]
    heads, neurons = [each.num_heads for each in parts], [each.num_neurons for each in parts]
    widths = Ticket(
        [range(max(1, round(kept_heads * count))) for count in heads],
        [range(max(1, round(kept_neurons * count))) for count in neurons],
        heads_of=heads,
        neurons_of=neurons,
    )
    return random_ticket(widths, heads, neurons, torch.Generator().manual_seed(0))


def _measured(tickets: Sequence[Ticket], dense: nn.Module, stage: TrainingStage, device: torch.device) -> list[float]:
    """The seconds of a training step of each ticket over those of the dense model's step on the same batch, medians."""
    steps, warm_up = (kinds.get(device.type, kinds["cpu"]) for kinds in (_STEPS, _WARM_UP))
    models = [copy.deepcopy(dense) for _ in range(1 + len(tickets))]
    for model, ticket in zip(models[1:], tickets, strict=True):
        ek.compact(model, ticket)
    ratios: list[list[float]] = [[] for _ in tickets]
    for _ in range(_PASSES):
        base, *others = [_step_seconds(model, stage, device, steps)[warm_up:] for model in models]
        for found, seconds in zip(ratios, others, strict=True):
            found += [own / of_dense for own, of_dense in zip(seconds, base, strict=True)]
    return processes.on_first(lambda: [statistics.median(found) for found in ratios])


def _step_seconds(model: nn.Module, stage: TrainingStage, device: torch.device, steps: int) -> list[float]:
    """The seconds of each of the first steps of a stage."""
    settings = replace(stage.settings, name="measuring", max_steps=steps, warmup_steps=0, logging_steps=steps)
    loop = TrainingLoop(model, stage.examples, stage.order, settings, device)
    ends = [0.0]

    def after_step(step: int) -> bool:
        ends.append(loop.watch.seconds)
        return False

    loop.run(after_step)
    return [end - begin for begin, end in pairwise(ends)]
