"""The search in a loop that is not the programs'."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

import earlybert_kernels as ek
from earlybert import SearchSettings, SearchStage, draw


@pytest.fixture(params=[True, False], ids=["converted", "stock"])
def model(request: pytest.FixtureRequest, tiny_bert: str) -> nn.Module:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    return ek.convert(model) if request.param else model


def train(model: nn.Module, search: SearchStage, first: int, last: int) -> int:
    """Pulls gates apart, by how much says the generator; returns the step at which the search ended."""
    for step in range(first, last + 1):
        generator = torch.Generator().manual_seed(step)
        for gates in search.gates:
            gates.data += torch.rand(gates.shape, generator=generator) * gates.arange * 0.1
        if search.after_step(step):
            return step
    return last


def with_order(search: SearchStage) -> SearchStage:
    for gates in search.gates:
        gates.arange = torch.arange(len(gates), dtype=torch.float32)
    return search


def test_a_search_draws_rewinds_and_leaves_a_model_that_can_be_cut(model: nn.Module) -> None:
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    search = with_order(SearchStage(model, SearchSettings(max_steps=40, interval=2)))
    model.classifier.weight.data.add_(1)
    ended = train(model, search, 1, 40)
    record = search.record()
    assert ended < 40
    assert record["drawn_by"] == "early bird"
    assert [check["step"] for check in record["checks"]][-1] == ended
    ticket = search.draw()
    assert ticket == draw(search.head_gates, search.neuron_gates)
    search.rewind()
    assert all(torch.equal(tensor, start[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="no gates"):
        ek.head_gates(model)
    ek.compact(model, ticket)


def test_a_search_can_be_taken_up_where_it_was(model: nn.Module) -> None:
    whole = with_order(SearchStage(model, SearchSettings(max_steps=40, interval=2)))
    values = []
    for step in range(1, 8):
        train(model, whole, step, step)
        if step == 4:
            values = [gates.detach().clone() for gates in whole.gates]
            state = whole.state_dict()
            checks = len(state["history"])
    expected = whole.record()
    whole.rewind()
    again = with_order(SearchStage(model, whole.settings))
    state["history"] = state["history"][:checks]
    again.load_state_dict(state)
    for gates, value in zip(again.gates, values, strict=True):
        gates.data.copy_(value)
    train(model, again, 5, 7)
    assert again.record() == expected
