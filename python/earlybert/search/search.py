"""The search around somebody's training: gates at its beginning, a look after each step, a ticket at its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import earlybert_kernels as ek

from .. import processes
from ..arguments import SCORES, TICKET_WEIGHTS
from ..errors import UsageError
from .detector import Check, EarlyBirdDetector, default_interval
from .drawing import Masks, Scope, draw, draw_masks, to_ticket
from .scores import Scorer, Scores

#: The settings, and arguments of a run, that say how many units of what `draw` keeps.
RULE = ("head_ratio", "neuron_ratio", "head_scope", "neuron_scope", "multiple_of")
#: The settings, and arguments of a run, that say which units those are, and with which weights they go on.
CHOICE = ("score", "rewind_steps")


@dataclass(frozen=True)
class SearchSettings:
    """When the ticket is drawn, and what of.

    Attributes:
        max_steps: optimizer steps after which the ticket is drawn in any case.
        head_ratio: share of the heads that are dropped.
        neuron_ratio: share of the neurons that are dropped.
        head_scope: "layer" drops that share in each layer, "global" of all layers together.
        neuron_scope: the same of neurons.
        multiple_of: of how many neurons each layer keeps a multiple; see `draw`.
        score: what units are drawn by, a name of `arguments.SCORES`; see `Scorer`.
        rewind_steps: the weights of which step of the search `finish` puts back; 0 for those of the beginning. No
            ticket is drawn before.
        interval: steps between two looks at the ticket; None for `default_interval`.
        threshold: distance, as a share of chance level, below which a ticket is at rest.
        patience: looks in a row at which it has to be.
        min_share: share of `max_steps` before which no ticket is drawn.
    """

    max_steps: int
    head_ratio: float = 1 / 3
    neuron_ratio: float = 0.4
    head_scope: Scope = "layer"
    neuron_scope: Scope = "global"
    multiple_of: int = 1
    score: str = "gate"
    rewind_steps: int = 0
    interval: int | None = None
    threshold: float = 0.1
    patience: int = 3
    min_share: float = 0.25


class Search:
    """EarlyBERT's search (arXiv 2101.00063, sections 3.1 and 3.2) in a training loop of any kind.

        search = Search(model, SearchSettings(max_steps=200))  # makes the gates
        ...                      # build the optimizer, train with an L1 penalty on `search.gates`, and
        if search.after_step():  # after every step of the optimizer: is the search over?
            ...                  # stop
        ticket = search.finish()  # the model is small now, and has the weights of the beginning; build its optimizer

    Of several processes (torchrun) each makes a search of its model and wraps that in DistributedDataParallel then,
    which averages the gates' gradients like all others; after `finish` the model is wrapped anew. The tickets of all
    processes are compared at every look and at the end, and are the same, or an error says that they are not.

    Units that the ticket of a look drops and whose gates are 0, as proximal steps of the penalty make them, are not
    computed until the next look, where the model is converted: pruned units cost nothing and get no gradients.

    A search that is to go on in another process is made there with a model of the same kind; then the model, the
    optimizer and the search are each given their saved state.

    Attributes:
        settings: when the ticket is drawn, and what of.
        head_gates, neuron_gates: the model's gates, float32 `(heads,)` and `(neurons,)`, layer by layer.
        step: optimizer steps taken.
        start: the weights that `finish` puts back, by name.
    """

    def __init__(self, model: nn.Module, settings: SearchSettings) -> None:
        """
        Args:
            model: a BERT on its device, stock or converted; it gets gates, where it has none yet.
            settings: when the ticket is drawn, and what of.

        Raises:
            UsageError: a setting is out of range.
            TypeError, ValueError: as `ek.enable_gates`.
        """
        if settings.max_steps < 1:
            raise UsageError(f"max_steps: expected at least 1, found {settings.max_steps}")
        if settings.score not in SCORES:
            raise UsageError(f"score: expected one of {', '.join(SCORES)}, found {settings.score}")
        if not 0 <= settings.rewind_steps < settings.max_steps:
            raise UsageError(
                f"rewind_steps: expected 0 to less than the {settings.max_steps} steps of the search, found "
                f"{settings.rewind_steps}"
            )
        self.settings = settings
        self.step = 0
        self._model = model
        ek.enable_gates(model)
        self.head_gates, self.neuron_gates = ek.head_gates(model), ek.neuron_gates(model)
        self._scorer = Scorer(model)
        self._computed: ek.Ticket | None = None  # which units are, if not all
        self.start = {name: tensor.clone() for name, tensor in self.searched_weights().items()}
        self._detector = EarlyBirdDetector(
            [len(gates) for gates in self.head_gates],
            [len(gates) for gates in self.neuron_gates],
            interval=settings.interval or default_interval(settings.max_steps),
            threshold=settings.threshold,
            patience=settings.patience,
            min_steps=max(settings.rewind_steps, round(settings.min_share * settings.max_steps)),
        )

    @property
    def gates(self) -> list[nn.Parameter]:
        """All gates of the model: of heads by layer, then of neurons by layer."""
        return [*self.head_gates, *self.neuron_gates]

    @property
    def weights(self) -> list[nn.Parameter]:
        """The model's other Parameters that are trained."""
        gates = set(self.gates)
        return [weight for weight in self._model.parameters() if weight.requires_grad and weight not in gates]

    def searched_weights(self) -> dict[str, Tensor]:
        """The weights as they are now, by name, without the gates; not copied."""
        gates = {gate.data_ptr() for gate in self.gates}
        return {name: tensor for name, tensor in self._model.state_dict().items() if tensor.data_ptr() not in gates}

    @property
    def is_over(self) -> bool:
        """Whether it is time to draw: the ticket is at rest, or `max_steps` are taken."""
        return self._detector.fired or self.step >= self.settings.max_steps

    @property
    def last_check(self) -> Check | None:
        """What the last look at the ticket has found, or None."""
        return self._detector.history[-1] if self._detector.history else None

    def observe(self) -> None:
        """Takes note of the gates' gradients, for scores that are made of them: after a step's backward passes, and
        before the optimizer's step. Other scores do not need it.
        """
        self._scorer.observe()

    def scores(self, name: str) -> Scores:
        """The scores of that name (of `arguments.SCORES`) as they are now: of heads and of neurons, layer by layer."""
        return self._scorer.scores(name)

    def after_step(self) -> bool:
        """Counts an optimizer step and looks at the ticket, if it is due; returns `is_over`.

        Raises:
            RuntimeError: of several processes, one has another ticket.
            UsageError: the model's gates are others than at the beginning, or the score takes `observe`.
        """
        self.step += 1
        if self.step == self.settings.rewind_steps:
            for name, tensor in self.searched_weights().items():
                self.start[name].copy_(tensor)
        if self._detector.is_due(self.step):
            self._check_gates()
            masks = draw_masks(*self.scores(self.settings.score), **self._rule())
            if processes.count() > 1:  # or a GPU is not waited for
                processes.check_same("the ticket", [self.step, [mask.tolist() for mask in (*masks[0], *masks[1])]])
            self._detector.update(self.step, masks)
            self._leave_out(masks)
        return self.is_over

    def draw(self) -> ek.Ticket:
        """The ticket of the scores as they are now.

        Raises:
            UsageError: the model's gates are others than at the beginning.
        """
        self._check_gates()
        return draw(*self.scores(self.settings.score), **self._rule())

    def finish(self, ticket: ek.Ticket | None = None, *, weights: str = "start") -> ek.Ticket:
        """Takes the gates away, puts back the weights of the beginning, and removes all units but the ticket's.

        The Parameters of what is cut are new ones, so that optimizers are built anew.

        Args:
            ticket: which units stay; by default those that `draw` gives.
            weights: `"start"` puts the weights of the beginning back, or of step `rewind_steps`; `"searched"` leaves
                those that the search has come to; `"folded"` too, and folds the gates into them.

        Returns:
            The ticket.

        Raises:
            RuntimeError: of several processes, one has another ticket.
            UsageError: the model's gates are others than at the beginning, or there are no such weights.
        """
        if weights not in TICKET_WEIGHTS:
            raise UsageError(f"weights: expected one of {', '.join(TICKET_WEIGHTS)}, found {weights}")
        if ticket is None:
            ticket = self.draw()
        processes.check_same("the ticket", ticket)
        if weights == "searched":
            for gate in self.gates:
                gate.data.fill_(1)
        self.close()
        if weights == "start":
            self._model.load_state_dict(self.start)
        ek.compact(self._model, ticket)
        return ticket

    def close(self) -> None:
        """Ends the search without a ticket: folds the gates into the weights, and has all units computed again."""
        ek.clear_ticket(self._model)
        ek.remove_gates(self._model)

    def record(self) -> dict[str, Any]:
        """What the looks at the ticket have found, for the report of a run."""
        return {
            "drawn_by": "early bird" if self._detector.fired else "limit",
            "score": self.settings.score,
            "max_steps": self.settings.max_steps,
            "threshold": self.settings.threshold,
            "interval": self._detector.interval,
            "checks": self._detector.state_dict()["history"],
        }

    def state_dict(self, *, start: bool = True) -> dict[str, Any]:
        """What the search knows and the model does not: plain values and tensors, for `torch.save`.

        Args:
            start: whether the weights of the beginning belong to it: as much as the model again. Without them, the
                search that it is given to must be made with a model of the same weights. With `rewind_steps` they do.
        """
        state = {"step": self.step, "detector": self._detector.state_dict(), "scores": self._scorer.state_dict()}
        state["computed"] = None if self._computed is None else [self._computed.heads, self._computed.neurons]
        return state | {"start": self.start} if start or self.settings.rewind_steps else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave, for a search made with the same kind of model and settings."""
        self.step = state["step"]
        self._detector.load_state_dict(state["detector"])
        self._scorer.load_state_dict(state["scores"])
        if (computed := state.get("computed")) is not None:
            self._compute_only(ek.Ticket(*computed))
        for name, tensor in state.get("start", {}).items():
            self.start[name].copy_(tensor)

    @torch.no_grad()
    def _leave_out(self, kept: Masks) -> None:
        """Has the model compute all units but those that `kept` drops and whose gates are 0."""
        if not ek.is_converted(self._model):
            return
        kinds = (self.head_gates, self.neuron_gates)
        computed = Masks(*(mask | (torch.cat([*gates]) != 0) for mask, gates in zip(kept, kinds, strict=True)))
        if self._computed is None and torch.cat(computed).all():  # the only wait for a GPU, while no gate is 0
            return
        ticket = to_ticket(computed, *([len(gate) for gate in gates] for gates in kinds))
        if ticket != self._computed:
            self._compute_only(ticket)

    def _compute_only(self, ticket: ek.Ticket) -> None:
        ek.apply_ticket(self._model, ticket)
        self._computed = ticket

    def _check_gates(self) -> None:
        """Raises UsageError if what trains the model has put other Parameters in the place of its gates."""
        now = (*ek.head_gates(self._model), *ek.neuron_gates(self._model))
        if any(gate is not own for gate, own in zip(now, self.gates, strict=True)):
            raise UsageError(
                "the model's gates are not those that the search began with. If fully_shard (FSDP2) has put its own in "
                "their place: a search cannot read them; search with DistributedDataParallel, and shard the model "
                "after finish()"
            )

    def _rule(self) -> dict[str, Any]:
        return {name: getattr(self.settings, name) for name in RULE}
