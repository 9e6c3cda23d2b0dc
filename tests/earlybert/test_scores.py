"""Scores against their definitions, on stock transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

import earlybert_kernels as ek
from earlybert import Search, SearchSettings
from earlybert.arguments import SCORES
from earlybert.errors import UsageError
from tests.helpers.toy import HEAD_SIZE, HEADS, LAYERS, NEURONS, PER_HEAD, PER_NEURON


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(3):
        ids = torch.randint(5, 20, (4, 7), generator=generator)
        mask = torch.arange(7) < torch.tensor([[7], [5], [3], [6]])
        made.append({"input_ids": ids, "attention_mask": mask.long(), "labels": torch.tensor([0, 1, 1, 0])})
    return made


def load(folder: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def changes_by_definition(folder: str) -> list[list[Tensor]]:
    """For each batch the sums over tokens of activation times gradient: of heads by layer, then of neurons by layer."""
    model, seen = load(folder), []
    layers = model.bert.encoder.layer
    for linear in [*(layer.attention.output.dense for layer in layers), *(layer.output.dense for layer in layers)]:
        linear.register_forward_pre_hook(lambda _, inputs: inputs[0].retain_grad() or seen.append(inputs[0]))
    found = []
    for batch in batches():
        seen.clear()
        model(**batch).loss.backward()
        sums = {id(each): (each * each.grad).sum((0, 1)) for each in seen}
        order = sorted(seen, key=lambda each: each.shape[-1] == NEURONS)  # heads and neurons take turns
        values = [sums[id(each)] for each in order]
        found.append([*(v.view(HEADS, HEAD_SIZE).sum(1) for v in values[:LAYERS]), *values[LAYERS:]])
    return found


@pytest.mark.parametrize("is_converted", [True, False])
def test_gradient_scores_are_sums_over_steps_of_what_the_definition_says(tiny_bert: str, is_converted: bool) -> None:
    model = load(tiny_bert)
    search = Search(ek.convert(model) if is_converted else model, SearchSettings(max_steps=9))
    for batch in batches():
        model(**batch).loss.backward()
        search.observe()
        model.zero_grad()
    changes = changes_by_definition(tiny_bert)
    for name, power in (("first-order", 1), ("fisher", 2)):
        heads, neurons = search.scores(name)
        for number, values in enumerate([*heads, *neurons]):
            expected = sum(change[number].abs() ** power for change in changes)
            torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-7)


def test_scores_of_weights_are_norms(tiny_bert: str) -> None:
    model = load(tiny_bert)
    search = Search(model, SearchSettings(max_steps=9))
    search.head_gates[1].data[2] = -3.0
    layer = model.bert.encoder.layer[1]
    rows = slice(2 * HEAD_SIZE, 3 * HEAD_SIZE)
    read = [getattr(layer.attention.self, name) for name in ("query", "key", "value")]
    head = [*(p[rows] for linear in read for p in (linear.weight, linear.bias))]
    head.append(layer.attention.output.dense.weight[:, rows])
    neuron = [layer.intermediate.dense.weight[5], layer.intermediate.dense.bias[5:6], layer.output.dense.weight[:, 5]]
    assert (sum(p.numel() for p in head), sum(p.numel() for p in neuron)) == (PER_HEAD, PER_NEURON)

    def norm(*parts: Tensor) -> Tensor:
        return torch.cat([part.flatten() for part in parts]).norm()

    heads, neurons = search.scores("magnitude")
    torch.testing.assert_close(torch.stack([heads[1][2], neurons[1][5]]), torch.stack([norm(*head), norm(*neuron)]))
    heads, neurons = search.scores("gate-norm")
    torch.testing.assert_close(heads[1][2], -3 * norm(head[-1]))
    torch.testing.assert_close(neurons[1][5], norm(neuron[-1]))


@pytest.mark.parametrize("score", SCORES)
def test_a_search_looks_at_its_score_and_draws_by_it(tiny_bert: str, score: str) -> None:
    model = load(tiny_bert)
    search = Search(model, SearchSettings(max_steps=4, interval=1, score=score))
    for batch in batches():
        model(**batch).loss.backward()
        search.observe()
        model.zero_grad()
        search.after_step()
    heads, neurons = (torch.stack(kind).abs() for kind in search.scores(score))
    ticket = search.draw()
    for layer, kept in enumerate(ticket.heads):
        assert sorted(heads[layer].topk(len(kept)).indices.tolist()) == kept or score == "gate", "gates are all 1"
    floor = neurons.flatten().topk(sum(map(len, ticket.neurons))).values[-1]
    assert all((neurons[layer][kept] >= floor).all() for layer, kept in enumerate(ticket.neurons))
    moved = [check.neurons for check in search._detector.history]
    assert max(moved) > 0 if score in ("first-order", "fisher") else max(moved) == 0


def test_scores_of_gradients_need_gradients(tiny_bert: str) -> None:
    search = Search(load(tiny_bert), SearchSettings(max_steps=4, interval=1, score="fisher"))
    with pytest.raises(UsageError, match="fisher is made of the gates' gradients: call Search.observe"):
        search.after_step()
    with pytest.raises(UsageError, match="score: expected one of gate, gate-norm"):
        Search(load(tiny_bert), SearchSettings(max_steps=4, score="luck"))
    with pytest.raises(UsageError, match="rewind_steps: expected 0 to less than the 4 steps"):
        Search(load(tiny_bert), SearchSettings(max_steps=4, rewind_steps=4))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**batches()[0]).logits


@pytest.mark.parametrize("weights", ["start", "rewound", "searched", "folded"])
def test_with_which_weights_a_ticket_goes_on(tiny_bert: str, weights: str) -> None:
    """A ticket of all units: the model is then one that is known."""
    model = load(tiny_bert)
    search = Search(model, SearchSettings(max_steps=4, rewind_steps=2 if weights == "rewound" else 0))
    expected = logits(model)
    for step in (1, 2, 3):
        for parameter in search.weights:
            parameter.data.mul_(1.02)
        for gate in search.gates:
            gate.data.mul_(torch.linspace(0.5, 1.5, len(gate)))
        search.after_step()
        if step == 2 and weights == "rewound":
            dense = load(tiny_bert)
            dense.load_state_dict({name: p.clone() for name, p in model.state_dict().items() if "gates" not in name})
            expected = logits(dense)
    if weights == "folded":
        expected = logits(model)
    elif weights == "searched":
        dense = load(tiny_bert)
        for parameter in dense.parameters():
            parameter.data.mul_(1.02).mul_(1.02).mul_(1.02)
        expected = logits(dense)
    everything = ek.Ticket([[*range(HEADS)]] * LAYERS, [[*range(NEURONS)]] * LAYERS)
    search.finish(everything, weights="start" if weights == "rewound" else weights)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-6)
