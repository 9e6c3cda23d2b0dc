"""The training loop: one for all stages and methods, which so differ in nothing but their settings."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import get_scheduler

import earlybert_kernels as ek

from .. import processes
from .batches import Batch, BatchMaker
from .data import EncodedExamples, TrainingOrder
from .distillation import Distillation
from .memory import keep_freed_memory
from .optimizer import make_optimizer
from .progress import Progress
from .stopwatch import Stopwatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageSettings:
    """How one stage is trained.

    Attributes:
        name: shown at the progress bar.
        max_steps: optimizer steps.
        learning_rate: of the weights.
        schedule: name of a schedule of `transformers.get_scheduler`.
        warmup_steps: optimizer steps of linear warm-up.
        max_grad_norm: longer gradients of the weights are cut to this norm; 0 for none.
        weight_decay: of the weight matrices; biases, LayerNorm and gates have none.
        gate_learning_rate: of the gates, where the model has any.
        gate_l1: lambda of the penalty `lambda * sum|c|` on the gates.
        gate_penalty: how it moves them; see `make_optimizer`.
        dtype: what the forward pass computes in; parameters are float32.
        pad_to: tokens to pad a stock model's batches to; None for the longest of a batch.
        optimizer: `"adamw"` or `"lamb"`; see `make_optimizer`.
        cuda_graphs: whether a converted model's steps are captured in CUDA graphs, on a GPU and where they can be.
        logging_steps: optimizer steps between two records of the loss, each of which waits for the device.
    """

    name: str
    max_steps: int
    learning_rate: float
    schedule: str
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    gate_learning_rate: float = 0.0
    gate_l1: float = 0.0
    gate_penalty: str = "subgradient"
    dtype: torch.dtype = torch.float32
    pad_to: int | None = None
    optimizer: str = "adamw"
    cuda_graphs: bool = True
    logging_steps: int = 25


def has_graphs(device: torch.device) -> bool:
    """Whether the device runs CUDA graphs."""
    return device.type == "cuda"


class TrainingLoop:
    """Trains a model on batches in a given order. It can be saved after any optimizer step and continued.

    Of several processes (torchrun) each has the whole loop, and trains on its share of the examples of every batch: the
    batches, the gradients and the recorded losses are those of one process, but for the order of additions.

    Attributes:
        step: optimizer steps taken.
        watch: measures the seconds spent training; use `watch.paused()` for what is not training.
        history: one record `{"step", "loss", "learning_rate", "gate_l1"}` per `logging_steps` and for the last step:
            the mean task loss since the record before, the rate that the step was taken with, and the penalty on the
            gates, which is not in the loss, where there are any.
        first_loss: the task loss of the first step, before any update.
        captures: whether steps are captured in CUDA graphs.
    """

    def __init__(
        self,
        model: nn.Module,
        examples: EncodedExamples,
        order: TrainingOrder,
        settings: StageSettings,
        device: torch.device,
        gates: list[nn.Parameter] | None = None,
        *,
        before_update: Callable[[], None] = lambda: None,
        distillation: Distillation | None = None,
    ) -> None:
        """
        Args:
            model: a Hugging Face model on `device`, in float32.
            examples: the training split.
            order: which examples each step sees.
            settings: the recipe.
            device: where to train.
            gates: those of the model's parameters that are gates.
            before_update: called when a step's gradients are all there, before they are used; on a GPU its work alone.
            distillation: what the loss of each batch is made of, where it is not the model's own.
        """
        self.model = model
        self.order = order
        self.settings = settings
        self.device = device
        self.gates = gates or []
        self._before_update = before_update
        self._distillation = distillation
        self.step = 0
        self.watch = Stopwatch(device)
        self.history: list[dict[str, Any]] = []
        self.first_loss: float | None = None

        own = {id(gate) for gate in self.gates}
        self._weights = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
        self.scaler = torch.GradScaler(device.type, enabled=settings.dtype == torch.float16)
        self.captures = self._can_capture(examples)
        self._batches = BatchMaker(
            model,
            examples,
            device,
            pad_to=settings.pad_to,
            fill_from=order.batch_size if self.captures else None,
            skip_logits=True,
        )
        self.optimizer = make_optimizer(
            settings.optimizer,
            self._weights,
            self.gates,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            gate_learning_rate=settings.gate_learning_rate,
            gate_l1=settings.gate_l1,
            gate_penalty=settings.gate_penalty,
            is_converted=ek.is_converted(model),
        )
        self.scheduler = get_scheduler(
            settings.schedule,
            self.optimizer,
            num_warmup_steps=settings.warmup_steps,
            num_training_steps=settings.max_steps,
        )
        self._loss = torch.zeros((), device=device)
        self._rate: float | torch.Tensor = settings.learning_rate
        # Since the last record: tokens without padding, and what the watch said then.
        self._tokens, self._since = 0, 0.0
        self._captured: ek.CapturedStep | None = None
        # What is called: the model, or its wrapper while it trains in several processes.
        self._parallel: nn.Module = model

    def run(
        self,
        after_step: Callable[[int], bool] = lambda step: False,
        on_record: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Trains from `self.step` to the last step.

        Args:
            after_step: called after every optimizer step with the number of steps taken, on the clock;
                training stops early when it returns True.
            on_record: called with every new record of `history` and its `tokens_per_second`, off the clock.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        with self._in_all_processes():
            self._run(after_step, on_record)

    @contextmanager
    def _in_all_processes(self) -> Iterator[None]:
        """While within, all processes' models train as one, beginning with process 0's weights."""
        if processes.count() == 1:
            yield
            return
        self._parallel = DistributedDataParallel(self.model)
        try:
            yield
        finally:
            self._parallel = self.model
            gc.collect()  # its hooks are on the Parameters for as long as the wrapper lives

    def _run(self, after_step: Callable[[int], bool], on_record: Callable[[dict[str, Any]], None] | None) -> None:
        self.model.train()
        keep_freed_memory()
        if self.captures:
            self._captured = ek.CapturedStep(self.model, self.optimizer, lambda batch: self._update([batch], [1.0]))
        self._tokens, self._since = 0, self.watch.seconds
        last = self.settings.max_steps

        def record(*, is_last: bool) -> None:
            found = self._record()
            if on_record is not None:
                with self.watch.paused():
                    on_record(found)
            progress.show(found, is_last=is_last)

        with Progress(self.settings.name, self.step, last, self.device) as progress, self.watch.running():
            for batches in self.order.steps_from(self.step):
                if self.step >= last:
                    break
                self._train_step(batches)
                self.step += 1
                progress.advance()
                if self.step % self.settings.logging_steps == 0 or self.step == last:
                    record(is_last=self.step == last)
                elif progress.is_due:
                    progress.show(self._look())
                if after_step(self.step):
                    break
            if self.step > self._logged_step():
                record(is_last=True)  # training was stopped between two records
        self._captured = None  # graphs keep memory

    def _can_capture(self, examples: EncodedExamples) -> bool:
        """Whether steps are captured; a line says why not, where they could be expected to."""
        if not (self.settings.cuda_graphs and ek.is_converted(self.model) and has_graphs(self.device)):
            return False
        obstacles = {
            "several processes add up their gradients": processes.count() > 1,
            "loss scaling of float16 looks at every step's gradients": self.scaler.is_enabled(),
            "another model is run beside it": self._distillation is not None,
            "units are left out as their gates reach 0": self.settings.gate_penalty == "proximal",
            "each is made of several batches": self.order.step_size > self.order.batch_size,
            "no number can be the label of a filler of a regression, or of several labels": any(
                values.is_floating_point() for values in examples.targets.values()
            ),
        }
        for reason, holds in obstacles.items():
            if holds:
                logger.info("%s: steps run without CUDA graphs: %s", self.settings.name, reason)
                return False
        return True

    def _train_step(self, batches: list[list[int]]) -> None:
        made, counts = zip(*[self._batches.make_share(indices) for indices in batches], strict=True)
        self._tokens += sum(sum(self._batches.lengths(indices)) for indices in batches)
        # The gradient is that of the mean over all the step's examples, or labelled tokens, however they are split.
        total = processes.total(sum(counts)) if self._batches.label_tokens else sum(map(len, batches))
        moved = [self._batches.move(batch) for batch in made]
        if self._captured is not None:
            self._loss += self._captured(*moved)
        else:
            # DistributedDataParallel takes the mean over the processes, and this is a sum.
            shares = [count / max(1, total) * processes.count() for count in counts]
            self._loss += self._update(moved, shares)
        if self.step == 0:
            self.first_loss = self._loss.item()
        self._rate = self.scheduler.get_last_lr()[0]
        self.scheduler.step()

    def _update(self, batches: list[Batch], shares: list[float]) -> torch.Tensor:
        """Forward, backward and the optimizer's step; on a GPU its work alone, but for float16.

        Args:
            batches: of one optimizer step, in this process.
            shares: the weights of their mean losses: which share of the step's examples, or labelled tokens, each of
                them has, times the number of processes.

        Returns:
            The step's mean loss, over all processes, a 0-dimensional tensor.
        """
        dtype = self.settings.dtype
        total = torch.zeros_like(self._loss)
        for number, (batch, share) in enumerate(zip(batches, shares, strict=True), start=1):
            with self._reducing(is_last=number == len(batches)):
                with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                    if self._distillation is None:
                        loss = self._parallel(**batch).loss
                    else:
                        outputs = self._parallel(**batch, **self._distillation.asked_for)
                        loss = self._distillation.loss(outputs, batch)
                loss = loss * share
                self.scaler.scale(loss).backward()
            total += loss.detach()
        processes.average([total])
        self.scaler.unscale_(self.optimizer)
        self._before_update()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return total

    def _reducing(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Gradients are summed over the processes with those of a step's last batch, and not before."""
        if is_last or not isinstance(self._parallel, DistributedDataParallel):
            return nullcontext()
        return self._parallel.no_sync()

    def _logged_step(self) -> int:
        """The step of the last record of the loss."""
        return self.history[-1]["step"] if self.history else 0

    def divergence(self) -> str | None:
        """A sentence if the loss has ended far above its start: training has lost what the model knew."""
        if self.first_loss is None or not self.history:
            return None
        last = self.history[-1]["loss"]
        if last <= 3 * self.first_loss or last <= self.first_loss + 1:
            return None
        what = "; the ticket was drawn from a search that diverged" if self.gates else ""
        return (
            f"{self.settings.name}: the loss ended at {last:.4g} and had begun at {self.first_loss:.4g}{what}; try a "
            "lower learning rate"
        )

    def penalty(self) -> float:
        """`lambda * sum|c|` now."""
        sums = torch.stack([gate.detach().abs().sum() for gate in self.gates])  # waits for a GPU once
        return self.settings.gate_l1 * sum(sums.tolist())

    def _look(self) -> dict[str, Any]:
        """What a record would say now, and `tokens_per_second` since the last one; waits for the device."""
        steps = self.step - self._logged_step()
        record = {"step": self.step, "loss": self._loss.item() / steps, "learning_rate": float(self._rate)}
        if not math.isfinite(record["loss"]):
            raise FloatingPointError(
                f"{self.settings.name}: the loss was not finite in one of the last {steps} steps, at step "
                f"{self.step}; try a lower learning rate, or bfloat16 in place of float16"
            )
        if self.gates:
            record["gate_l1"] = self.penalty()
        return record | {"tokens_per_second": self._tokens / (self.watch.seconds - self._since)}

    def _record(self) -> dict[str, Any]:
        """Adds to `history` what `_look` says, but for the speed, which is another in every run."""
        found = self._look()
        self.history.append({name: value for name, value in found.items() if name != "tokens_per_second"})
        self._loss.zero_()
        self._tokens, self._since = 0, self.watch.seconds
        return found

    def seed(self) -> None:
        """Gives dropout random numbers of its own in this process, from the run's seed and the steps taken."""
        seed, rank = self.order.seed, processes.rank()
        if self.step or rank:
            (seed,) = np.random.SeedSequence([seed, self.step, rank]).generate_state(1).tolist()
        torch.manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """All that changes while training, the states of torch's random numbers (dropout) of all processes included.

        All of them have to call this.
        """
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {
            "step": self.step,
            "seconds": self.watch.seconds,
            "history": self.history,
            "first_loss": self.first_loss,
            "loss": self._loss.item(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": processes.gather([torch.get_rng_state(), cuda]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave, for a loop made with the same arguments.

        In another number of processes the random numbers of dropout are others, by `seed`.
        """
        self.step = state["step"]
        self.watch = Stopwatch(self.device, state["seconds"])
        self.history = state["history"]
        self.first_loss = state["first_loss"]
        self._loss.fill_(state["loss"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        if len(state["rng"]) != processes.count():
            self.seed()
            return
        own, cuda = state["rng"][processes.rank()]
        torch.set_rng_state(own)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, self.device)
