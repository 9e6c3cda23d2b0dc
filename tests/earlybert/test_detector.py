from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from earlybert import EarlyBirdDetector, FinetuneArguments, draw, finetune
from earlybert.errors import UsageError
from earlybert.search.detector import default_interval
from earlybert.search.drawing import Masks, draw_masks, random_ticket, to_masks
from earlybert_kernels import Ticket, use_backend
from tests.helpers.targets import targets_of

HEADS, NEURONS = [12] * 6, [64] * 6


def detector(**changes: float) -> EarlyBirdDetector:
    settings = {"interval": 10, "threshold": 0.1, "patience": 3, "min_steps": 0}
    return EarlyBirdDetector(HEADS, NEURONS, **{**settings, **changes})


def gates(seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return (
        [1 + 0.01 * torch.randn(count, generator=generator) for count in HEADS],
        [1 + 0.01 * torch.randn(count, generator=generator) for count in NEURONS],
    )


def fires_at(early: EarlyBirdDetector, tickets: list[Ticket]) -> int | None:
    for number, ticket in enumerate(tickets, start=1):
        if early.update(number * early.interval, ticket):
            return number * early.interval
    return None


def test_random_masks_never_fire() -> None:
    drawn = draw(*gates())
    generator = torch.Generator().manual_seed(0)
    early = detector()
    assert fires_at(early, [random_ticket(drawn, HEADS, NEURONS, generator) for _ in range(100)]) is None
    for name in ("heads", "neurons"):
        mean = sum(getattr(check, name) for check in early.history) / len(early.history)
        assert mean == pytest.approx(1.0, abs=0.05), "random masks are at chance level"


def test_random_masks_do_not_fire_when_little_is_dropped() -> None:
    drawn = draw(*gates(), head_ratio=1 / 12, neuron_ratio=0.05)
    generator = torch.Generator().manual_seed(0)
    tickets = [random_ticket(drawn, HEADS, NEURONS, generator) for _ in range(50)]
    assert max(a.distance(b) for a, b in pairwise(tickets)) < 0.1, "small in absolute terms"
    assert fires_at(detector(), tickets) is None


def test_a_frozen_mask_fires_after_patience_comparisons() -> None:
    drawn = draw(*gates())
    assert fires_at(detector(), [drawn] * 10) == 40


def test_a_frozen_mask_waits_for_the_minimum() -> None:
    drawn = draw(*gates())
    assert fires_at(detector(min_steps=95), [drawn] * 20) == 100


def test_a_jump_starts_the_count_again() -> None:
    a, b = draw(*gates(0)), draw(*gates(1))
    assert fires_at(detector(), [a, a, a, b, b, b, b, b]) == 70


@pytest.mark.parametrize("moving", ["heads", "neurons"])
def test_one_kind_that_moves_is_enough_to_wait(moving: str) -> None:
    still, generator = draw(*gates()), torch.Generator().manual_seed(0)
    tickets = []
    for _ in range(20):
        other = random_ticket(still, HEADS, NEURONS, generator)
        tickets.append(Ticket(other.heads, still.neurons) if moving == "heads" else Ticket(still.heads, other.neurons))
    assert fires_at(detector(), tickets) is None


def drift(steps: int, settles_at: int | None) -> list[Ticket]:
    """Tickets of gates that each move by a learning rate a step, and turn round every 100 steps at its own
    time.
    """
    heads, neurons = gates()
    generator = torch.Generator().manual_seed(3)
    phases = [torch.randint(0, 200, (len(gate),), generator=generator) for gate in (*heads, *neurons)]
    tickets = []
    for step in range(steps):
        if settles_at is None or step < settles_at:
            for gate, phase in zip((*heads, *neurons), phases, strict=True):
                gate.add_(torch.where((phase + step) % 200 < 100, 2e-4, -2e-4))
        tickets.append(draw(heads, neurons))
    return tickets


def test_a_slow_drift_does_not_fire() -> None:
    tickets = drift(400, settles_at=None)
    every_step = detector(interval=1)
    assert fires_at(every_step, tickets) is not None, "the rule step by step takes a drift for rest"
    assert fires_at(detector(interval=20), tickets[19::20]) is None


def test_a_drift_that_ends_fires_soon_after() -> None:
    tickets = drift(400, settles_at=200)
    step = fires_at(detector(interval=20), tickets[19::20])
    assert step is not None
    assert 200 < step <= 280


def test_nothing_dropped_is_at_rest() -> None:
    everything = draw(*gates(), head_ratio=0.0, neuron_ratio=0.0)
    early = detector()
    assert fires_at(early, [everything] * 10) == 40
    assert early.history[0].heads == 0.0


def test_checks_are_an_interval_apart() -> None:
    early = detector(interval=4)
    assert [step for step in range(1, 13) if early.is_due(step)] == [4, 8, 12]


def test_state_survives_json() -> None:
    tickets = drift(200, settles_at=100)[9::10]
    whole, first = detector(), detector()
    fires_at(whole, tickets)
    for number, ticket in enumerate(tickets[:7], start=1):
        first.update(10 * number, ticket)
    second = detector()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for number, ticket in enumerate(tickets[7:], start=8):
        if second.update(10 * number, ticket):
            break
    assert second.state_dict() == whole.state_dict()
    assert second.fired


@pytest.mark.parametrize("target", targets_of("ticket_distance"), ids=lambda target: target.backend)
def test_masks_on_a_device_and_tickets_are_the_same_to_it(target) -> None:
    """Also where a run that was begun with one goes on with the other."""
    tickets = drift(200, settles_at=100)[9::10]
    with_tickets, with_masks, resumed = detector(), detector(), detector()
    with use_backend(target.backend):
        for number, ticket in enumerate(tickets, start=1):
            masks = Masks(*(mask.to(target.device) for mask in to_masks(ticket, HEADS, NEURONS)))
            fired = with_tickets.update(10 * number, ticket)
            assert with_masks.update(10 * number, masks) == fired
            assert resumed.update(10 * number, ticket if number < 8 else masks) == fired
            if number == 8:
                state = resumed.state_dict()
                assert state == with_tickets.state_dict()
                resumed = detector()
                resumed.load_state_dict(json.loads(json.dumps(state)))
    assert fired and with_tickets.history == with_masks.history == resumed.history
    assert with_tickets.state_dict() == with_masks.state_dict() == resumed.state_dict()


def test_distances_are_shares_of_chance() -> None:
    a, b = draw(*gates(0)), draw(*gates(1))
    early = detector()
    early.update(10, a)
    early.update(20, b)
    (check,) = early.history
    for found, kept, counts, of in (
        (check.heads, b.heads, HEADS, "heads"),
        (check.neurons, b.neurons, NEURONS, "neurons"),
    ):
        dropped = 1 - sum(map(len, kept)) / sum(counts)
        assert found == pytest.approx(b.distance(a, of=of) / dropped, rel=1e-12)
        assert 0.5 < found < 1.5


def test_the_state_of_an_old_run_is_taken() -> None:
    ticket = draw(*gates())
    old = {
        "history": [{"step": 10, "heads": 0.5, "neurons": 0.25}],
        "fired": False,
        "last": [ticket.heads, ticket.neurons],
        "at_rest": 2,
    }
    early = detector()
    early.load_state_dict(old)
    assert early.state_dict() == old
    assert early.update(20, draw_masks(*gates())), "the third time that nothing moved"


@pytest.mark.parametrize(("name", "value"), [("interval", 0), ("patience", 0), ("threshold", 1.0), ("threshold", -0.1)])
def test_refuses_settings_that_make_no_sense(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{name}: expected"):
        detector(**{name: value})


@pytest.mark.parametrize(("steps", "interval"), [(1, 1), (6, 1), (24, 2), (31, 2), (120, 10), (6000, 10)])
def test_a_short_search_is_looked_at_more_often(steps: int, interval: int) -> None:
    assert default_interval(steps) == interval


def test_a_short_search_makes_checks_by_default(arguments: Callable[..., FinetuneArguments]) -> None:
    search = finetune(arguments(early_bird_interval=None, search_steps=6))["search"]
    assert [check["step"] for check in search["checks"]] == [2, 3, 4, 5, 6]
