"""How far two masks are apart, against `Ticket.distance`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import earlybert_kernels as ek
from tests.helpers.targets import targets_of

TARGETS = pytest.mark.parametrize("target", targets_of("ticket_distance"), ids=lambda target: target.backend)


def distance(target, a, b):
    result = ek.ops.ticket_distance(a.to(target.device), b.to(target.device), backend=target.backend)
    assert result.dtype == torch.float64 and result.shape == () and result.device.type == target.device
    return result.item()


def ticket(mask):
    units = [mask.nonzero().flatten().tolist()]
    return ek.Ticket(units, units)


@TARGETS
@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=70))
def test_it_is_the_tickets_distance(target, pairs):
    a, b = (torch.tensor([pair[side] for pair in pairs], dtype=torch.bool) for side in (0, 1))
    assert distance(target, a, b) == ticket(a).distance(ticket(b))


@TARGETS
@pytest.mark.parametrize("units", [1, 31, 1024, 1843, 98_304])
def test_many_units(target, units):
    a, b = (torch.rand(units) < share for share in (0.6, 0.3))
    assert distance(target, a, b) == ticket(a).distance(ticket(b))
    assert distance(target, a, a) == 0.0
    assert distance(target, a, ~a) == 1.0
    none = torch.zeros(units, dtype=torch.bool)
    assert distance(target, none, none) == 0.0


@TARGETS
def test_views(target):
    a, b = (torch.rand(300) < 0.5 for _ in range(2))
    assert distance(target, a[1:151], b[::2]) == ticket(a[1:151]).distance(ticket(b[::2]))


def test_mistakes_are_named():
    mask = torch.ones(3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"ticket_distance: b has shape .4,., expected that of a"):
        ek.ops.ticket_distance(mask, torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"ticket_distance: a has shape .3, 1., expected .units,."):
        ek.ops.ticket_distance(mask[:, None], mask)
    with pytest.raises(TypeError, match=r"ticket_distance: b is torch.int64, expected torch.bool .True = kept."):
        ek.ops.ticket_distance(mask, mask.long())
    with pytest.raises(ValueError, match="one device"):
        ek.ops.ticket_distance(mask, mask.to("meta"))
