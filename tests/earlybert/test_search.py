"""The search in a loop that is not the programs'."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

import earlybert_kernels as ek
from earlybert import Search, SearchSettings, draw
from earlybert_kernels.models import layer_parts

SETTINGS = SearchSettings(max_steps=40, interval=2)


@pytest.fixture(params=[True, False], ids=["converted", "stock"])
def model(request: pytest.FixtureRequest, tiny_bert: str) -> nn.Module:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    return ek.convert(model) if request.param else model


def train(search: Search, last: int) -> None:
    """Pulls gates apart until the search is over or at this step; by how much says the generator."""
    while not search.is_over and search.step < last:
        generator = torch.Generator().manual_seed(search.step)
        for gates in search.gates:
            gates.data += torch.rand(gates.shape, generator=generator) * torch.arange(len(gates)) * 0.1
        assert search.after_step() == search.is_over


def test_a_search_draws_rewinds_and_cuts(model: nn.Module) -> None:
    search = Search(model, SETTINGS)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items() if "gates" not in name}
    assert {*map(id, search.weights), *map(id, search.gates)} == {id(parameter) for parameter in model.parameters()}
    for parameter in search.weights:
        parameter.data.add_(1)
    train(search, 40)
    record = search.record()
    assert search.step < 40
    assert record["drawn_by"] == "early bird"
    assert [check["step"] for check in record["checks"]][-1] == search.step == search.last_check.step
    expected = draw(search.head_gates, search.neuron_gates)
    assert search.finish() == expected
    with pytest.raises(ValueError, match="no gates"):
        ek.head_gates(model)
    stock = ek.to_stock(model).state_dict()
    other = ek.to_stock(model)
    other.load_state_dict(start)
    expected_state = ek.to_stock(ek.compact(other, expected)).state_dict()
    assert all(torch.equal(tensor, expected_state[name]) for name, tensor in stock.items())


def test_a_search_ends_at_its_last_step(model: nn.Module) -> None:
    search = Search(model, SearchSettings(max_steps=3, interval=2))
    assert [search.after_step() for _ in range(3)] == [False, False, True]
    assert search.record()["drawn_by"] == "limit"
    assert search.finish(ek.Ticket([[1, 2]] * 3, [[0, 7]] * 3)) == ek.Ticket([[1, 2]] * 3, [[0, 7]] * 3)
    with pytest.raises(ValueError, match="max_steps: expected at least 1, found 0"):
        Search(model, SearchSettings(max_steps=0))


def test_units_that_have_gone_to_zero_are_computed_no_more(model: nn.Module, tiny_bert: str) -> None:
    search = Search(model.eval(), SETTINGS)
    text = torch.arange(5, 15)[None]
    for heads in search.head_gates:
        heads.data[2:] = 0  # of 4, of which the ticket keeps 3
    for neurons in search.neuron_gates:
        neurons.data[40:] = 0  # of 48, of which it keeps 29 or so
    whole = model(text).logits
    for _ in range(SETTINGS.interval):
        search.after_step()
    assert torch.equal(search.head_gates[0], torch.tensor([1.0, 1, 0, 0]))
    torch.testing.assert_close(model(text).logits, whole, rtol=1e-5, atol=1e-6)
    if ek.is_converted(model):
        assert_computed(model, heads=[0, 1, 2], neurons=list(range(40)))
        other = ek.convert(AutoModelForSequenceClassification.from_pretrained(tiny_bert))
        again = Search(other, SETTINGS)
        again.load_state_dict(search.state_dict())
        assert_computed(other, heads=[0, 1, 2], neurons=list(range(40)))
        search.neuron_gates[0].data[40:] = 1  # others are 0 from now on
        search.neuron_gates[0].data[:8] = 0
        for _ in range(SETTINGS.interval):
            search.after_step()
        assert layer_parts(model)[0][0].active_neurons.tolist() == list(range(8, 48))
    other = copy.deepcopy(model)
    Search(other, SETTINGS).close()
    torch.testing.assert_close(other(text).logits, model(text).logits, rtol=1e-5, atol=1e-6)
    if ek.is_converted(model):
        ek.restore(other)  # which refuses one that computes no more than a ticket
    ticket = search.finish()
    assert [len(heads) for heads in ticket.heads] == [3, 3, 3]
    fresh = AutoModelForSequenceClassification.from_pretrained(tiny_bert).eval()
    fresh.load_state_dict(search.start)
    torch.testing.assert_close(model(text).logits, ek.compact(fresh, ticket)(text).logits, rtol=1e-5, atol=1e-6)


def assert_computed(model: nn.Module, *, heads: list[int], neurons: list[int]) -> None:
    for layer, _ in layer_parts(model):
        assert layer.active_heads.tolist() == heads
        assert layer.active_neurons.tolist() == neurons


@pytest.mark.parametrize("with_start", [True, False])
def test_a_search_can_be_taken_up_where_it_was(
    model: nn.Module, tiny_bert: str, tmp_path: Path, with_start: bool
) -> None:
    whole = Search(model, SETTINGS)
    train(whole, 4)
    states = model.state_dict(), whole.state_dict(start=with_start)
    torch.save(states, tmp_path / "saved.pt")
    train(whole, 40)

    torch.manual_seed(1 if with_start else 0)  # the classifier begins elsewhere, or where the model's began
    other = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    if ek.is_converted(model):
        ek.convert(other)
    again = Search(other, SETTINGS)
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    assert again.step == 4
    train(again, 40)
    assert again.record() == whole.record()
    assert again.finish() == whole.finish()
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())
