"""The method inside somebody's run of `transformers.Trainer`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import earlybert_kernels as ek
from earlybert_kernels.models import layer_parts

from .. import processes
from ..errors import UsageError
from ..files import replacing
from .gate_updates import GateUpdates
from .search import Search, SearchSettings

logger = logging.getLogger(__name__)

#: What the callback has to know to resume from a checkpoint, in the checkpoint's folder.
STATE_FILE = "earlybert.pt"


class EarlyBertCallback(TrainerCallback):
    """Makes a run of `transformers.Trainer` one of EarlyBERT (arXiv 2101.00063): search, draw, then train the ticket.

        trainer = Trainer(model=ek.convert(model), args=args, callbacks=[EarlyBertCallback()], ...)
        trainer.train()

    The first optimizer steps, `search_share` of all at most, train the model with gates at a constant learning rate.
    Once the ticket is at rest, the model is cut to it in place and gets back the weights that it came with; the rest of
    the run, always as many steps as if the search had taken all of its share, trains that, with the schedule of the
    arguments from its beginning to its end. The optimizer stays, with a new state.

    Beside the loss the log has, while searching, `gate_l1`, the penalty, which is no part of the loss; and, of the last
    look at the ticket, `head_distance` and `neuron_distance`, as shares of chance level. The best model and metric of
    `load_best_model_at_end` are those of the ticket: what was best before the draw is forgotten.

    The callback takes Trainer's own optimizers and others that are handed over, and schedules that are a `LambdaLR`, as
    all of Trainer's are but `reduce_lr_on_plateau` and `greedy`; models that are handed over (a `model_init` can not be
    resumed). Of several processes (torchrun) each has the callback: Trainer wraps the model in
    DistributedDataParallel, the gates' gradients are averaged beside it, and the draw makes the wrapper anew.

    Attributes:
        ticket: which units the model keeps, once drawn.
        record: what the search found: `step`, at which the ticket was drawn, `drawn_by` ("early bird" or "limit"),
            `max_steps`, `threshold`, `interval` and `checks`; None before the draw.
    """

    def __init__(
        self,
        *,
        search_share: float = 0.2 / 2.2,
        search_learning_rate: float = 2e-5,
        gate_learning_rate: float | None = None,
        gate_l1: float = 1e-4,
        **settings: Any,
    ) -> None:
        """
        Args:
            search_share: largest share of the run's optimizer steps that the search takes. The paper's is 0.2 epochs,
                before 2 of the ticket: with `num_train_epochs=2.2`, the default is that.
            search_learning_rate: of the weights while searching, constant. It is the first parameter group's; groups
                of other rates keep their ratio to it.
            gate_learning_rate: of the gates; by default `search_learning_rate`.
            gate_l1: lambda of the L1 penalty on the gates.
            settings: all of `SearchSettings` but `max_steps`: `head_ratio`, `neuron_ratio`, `head_scope`,
                `neuron_scope`, `score`, `rewind_steps`, `interval`, `threshold`, `patience`, `min_share`.

        Raises:
            UsageError: `search_share` is no share.
            TypeError: there is no such setting.
        """
        if not 0 < search_share < 1:
            raise UsageError(f"search_share: expected a share between 0 and 1, found {search_share}")
        SearchSettings(max_steps=1, **settings)
        self.search_share = search_share
        self.search_learning_rate = search_learning_rate
        self.gate_learning_rate = search_learning_rate if gate_learning_rate is None else gate_learning_rate
        self.gate_l1 = gate_l1
        self.settings = settings
        self.ticket: ek.Ticket | None = None
        self.record: dict[str, Any] | None = None
        self._search: Search | None = None
        self._gates: GateUpdates | None = None
        self._scale = 1.0
        self._schedule: _TwoStages | None = None
        self._prepared: nn.Module | None = None
        self._wrapper: DistributedDataParallel | None = None

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Adds the gates: a checkpoint is loaded before training begins. Trainer's optimizer will not know them."""
        model = self._prepared = kwargs["model"]
        ek.enable_gates(model)
        for gate in (*ek.head_gates(model), *ek.neuron_gates(model)):
            gate.requires_grad_(False)

        def before_loading(module: nn.Module, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
            if _cut_to_fit(module, weights, prefix, args):
                hook.remove()

        hook = model.register_load_state_dict_pre_hook(before_loading)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begins the search, or goes on where the checkpoint was."""
        model, optimizer, scheduler = (kwargs[name] for name in ("model", "optimizer", "lr_scheduler"))
        _check(args, model, optimizer, scheduler)
        self._wrapper = processes.wrapper_of(model) if processes.count() > 1 else None
        longest = max(1, round(self.search_share * state.max_steps))
        if longest >= state.max_steps:
            raise UsageError(f"{state.max_steps} optimizer steps are too few for a search and the training of a ticket")
        self._train_steps = state.max_steps - longest
        self._schedule = _TwoStages(scheduler, self.search_learning_rate, state.max_steps / self._train_steps)
        saved = self._read(args, state, model) if state.global_step else {}
        if "ticket" in saved:
            ek.remove_gates(model)
            self._search = self._gates = None
            self.ticket, self.record = ek.Ticket(**saved["ticket"]), saved["record"]
            self._schedule.origin = saved["origin"]
            state.max_steps = saved["record"]["step"] + self._train_steps
            return
        self.ticket = self.record = None
        self._search = Search(model, SearchSettings(max_steps=longest, **self.settings))
        self._gates = GateUpdates(self._search.gates, learning_rate=self.gate_learning_rate, l1=self.gate_l1)
        if saved:
            self._search.load_state_dict(saved["search"])
            self._gates.optimizer.load_state_dict(saved["gates"])
        else:
            for gate in self._search.gates:
                gate.data.fill_(1)
        self._schedule.set_rates()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draws, if it is time: after what was to be logged, evaluated and saved at the search's last step."""
        if self._search is not None and self._search.is_over:
            self._draw(state, kwargs["model"], kwargs["optimizer"])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remembers what the loss was scaled by; the step changes it."""
        scaler = getattr(kwargs["optimizer"], "scaler", None)
        self._scale = 1.0 if scaler is None else scaler.get_scale()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Steps the gates."""
        if self._gates is None or self._search is None:
            return
        if getattr(kwargs["optimizer"], "step_was_skipped", False):
            self._gates.skip()
        else:
            self._gates.step(self._scale, self._search.observe)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Looks at the ticket."""
        if self._search is not None:
            self._search.after_step()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Adds what is known of the gates to a record of the loss."""
        if self._search is None or self._gates is None or "loss" not in kwargs["logs"]:
            return
        values = {"gate_l1": self._gates.penalty()}
        if (check := self._search.last_check) is not None:
            values |= {"head_distance": check.heads, "neuron_distance": check.neurons}
        for record in (kwargs["logs"], state.log_history[-1]):  # Trainer has made the second of the first
            record.update(values)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Adds to the checkpoint what Trainer does not know."""
        folder = Path(args.output_dir or "", f"checkpoint-{state.global_step}")
        # Elsewhere are those of a search for hyper-parameters.
        if args.save_only_model or not args.should_save or not folder.is_dir():
            return
        saved: dict[str, Any] = {"step": state.global_step}
        if self._search is not None and self._gates is not None:
            saved |= {"search": self._search.state_dict(), "gates": self._gates.optimizer.state_dict()}
        elif self.ticket is not None and self._schedule is not None:
            parts = {name: getattr(self.ticket, name) for name in ("heads", "neurons", "heads_of", "neurons_of")}
            saved |= {"ticket": parts, "record": self.record, "origin": self._schedule.origin}
        with replacing(folder / STATE_FILE) as partial:
            torch.save(saved, partial)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Says so, if there is no ticket."""
        if self._search is not None:
            logger.warning("training ended at step %d, before a ticket was drawn", state.global_step)

    def _draw(self, state: TrainerState, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        assert self._search is not None and self._gates is not None and self._schedule is not None
        self._gates.close()
        before = {parameter: name for name, parameter in model.named_parameters()}
        self.ticket = self._search.finish()
        self.record = {**self._search.record(), "step": state.global_step}
        self._search = self._gates = None

        after = dict(model.named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [after[before[p]] if p in before else p for p in group["params"]]
        optimizer.state.clear()
        if self._wrapper is not None:
            processes.rewrap(self._wrapper)
        self._schedule.begin_training()
        state.max_steps = state.global_step + self._train_steps
        state.best_metric = state.best_global_step = state.best_model_checkpoint = None
        drawn = {"drawn_by": self.record["drawn_by"], "search_steps": state.global_step}
        state.log_history.append({**drawn, "epoch": state.epoch, "step": state.global_step})
        logger.info("ticket drawn by %(drawn_by)s after %(search_steps)d steps", drawn)

    def _read(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> dict[str, Any]:
        """What `on_save` has added to the checkpoint that training goes on from."""
        if model is not self._prepared:
            raise UsageError(
                "a run with EarlyBertCallback can only be resumed by a Trainer that was made with the callback and a "
                "model: Trainer(model=..., callbacks=[EarlyBertCallback(...)])"
            )
        for saved in _saved_states(args):
            if saved["step"] == state.global_step:
                return saved
        raise UsageError(
            f"no {STATE_FILE} of step {state.global_step} in the checkpoints of {args.output_dir}; if the checkpoint "
            "lies elsewhere, name it in TrainingArguments(resume_from_checkpoint=...), and if it is of a run without "
            "EarlyBertCallback, it cannot be resumed with it"
        )


class _TwoStages:
    """A schedule of two stages in the place of a schedule of one: constant, then all of it in fewer steps.

    Attributes:
        origin: the scheduler's count of steps when the second stage began; None before.
    """

    def __init__(self, scheduler: LambdaLR, search_learning_rate: float, stretch: float) -> None:
        """
        Args:
            scheduler: of the whole run; its lambdas are replaced.
            search_learning_rate: of the first stage, for the first parameter group.
            stretch: steps of the whole run for one of the second stage.
        """
        self.origin: int | None = None
        self._scheduler = scheduler
        share = search_learning_rate / scheduler.base_lrs[0]

        def in_stages(schedule: Any) -> Any:
            # A function, which is not saved with the scheduler's state as an object would be.
            def factor(step: int) -> Any:
                return share if self.origin is None else schedule((step - self.origin) * stretch)

            return factor

        scheduler.lr_lambdas = [in_stages(schedule) for schedule in scheduler.lr_lambdas]

    def begin_training(self) -> None:
        """The second stage begins with the next step."""
        self.origin = self._scheduler.last_epoch
        self.set_rates()

    def set_rates(self) -> None:
        """Gives the parameter groups the learning rates of the next step, as the scheduler's own step does."""
        scheduler = self._scheduler
        factors = [schedule(scheduler.last_epoch) for schedule in scheduler.lr_lambdas]
        scheduler._last_lr = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
        for group, rate in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
            group["lr"] = rate


def _check(args: TrainingArguments, model: nn.Module, optimizer: Any, scheduler: Any) -> None:
    """Raises UsageError if the run has something that does not go with cutting a model."""
    refused = {
        "torch.nn.DataParallel: start a process for each GPU with torchrun": args.n_gpu > 1,
        "FSDP, whose shards a search cannot read: leave it out": bool(args.fsdp),
        "DeepSpeed: leave it out": args.deepspeed is not None,
        "torch_compile": args.torch_compile,
        f"a schedule of {type(scheduler).__name__}, which is no LambdaLR": not isinstance(scheduler, LambdaLR),
        "an optimizer that holds none of the model's Parameters": set(model.parameters()).isdisjoint(
            parameter for group in optimizer.param_groups for parameter in group["params"]
        ),
    }
    for what, found in refused.items():
        if found:
            raise UsageError(f"EarlyBertCallback cannot train with {what}")


def _saved_states(args: TrainingArguments) -> list[dict[str, Any]]:
    """What `on_save` has added to the checkpoint of the arguments, or to all of the run's where they name none."""
    files = [Path(args.resume_from_checkpoint or "", STATE_FILE)]
    if not args.resume_from_checkpoint or not files[0].is_file():
        files = list(Path(args.output_dir or "").glob(f"checkpoint-*/{STATE_FILE}"))
    return [torch.load(file, map_location="cpu", weights_only=True, mmap=True) for file in files]


def _cut_to_fit(model: nn.Module, weights: dict[str, Tensor], prefix: str, args: TrainingArguments) -> bool:
    """Cuts a model to the ticket of weights that are about to be loaded into it; returns whether it had to be.

    Raises:
        UsageError: there are weights of other widths, and not one ticket of theirs.
    """
    names: dict[Tensor, str] = {parameter: prefix + name for name, parameter in model.named_parameters()}
    own: list[tuple[int, int]] = []
    found: list[tuple[int, int]] = []
    for _, parts in layer_parts(model):
        pair = parts.attention_output.weight, parts.output.weight
        if any(names[weight] not in weights for weight in pair):
            return False
        for widths, (attention, output) in ((own, pair), (found, [weights[names[weight]] for weight in pair])):
            widths.append((attention.shape[1] // parts.head_size, output.shape[1]))
    if own == found:
        return False
    tickets = {ek.Ticket(**saved["ticket"]) for saved in _saved_states(args) if "ticket" in saved}
    fit = [t for t in tickets if [(len(h), len(n)) for h, n in zip(t.heads, t.neurons, strict=True)] == found]
    if len(fit) != 1:
        raise UsageError(
            f"expected one ticket of the weights' widths in the {STATE_FILE} of the checkpoints of {args.output_dir}, "
            f"found {len(fit)}; name the checkpoint in TrainingArguments(resume_from_checkpoint=...)"
        )
    ek.compact(model, fit[0])
    return True
