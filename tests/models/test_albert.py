"""A model whose layers are one: what the rounds through it have to add up to."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AlbertForSequenceClassification, AlbertModel

import earlybert_kernels as ek
from tests.helpers.tiny_bert import batch, set_gates, some_ticket, tiny_model

CLOSE = {"rtol": 1e-9, "atol": 1e-10}
CLASSES = torch.tensor([0, 2, 1, 1])


def small(cls=AlbertForSequenceClassification, **more):
    return tiny_model(cls=cls, **more).double()


def test_gates_and_tickets_are_of_one_layer_and_are_kept_to_in_every_round() -> None:
    model = ek.enable_gates(small())
    set_gates(model)
    (heads,), (neurons,) = ek.head_gates(model), ek.neuron_gates(model)
    ticket = some_ticket(model)
    assert len(ticket) == 1 and ek.Ticket([range(4)], [range(40)]).distance(ticket) > 0
    before = ek.compact(copy.deepcopy(model), ticket)
    with torch.no_grad():  # a gate of 0 is a unit that is not there
        for gates, kept in ((heads, ticket.heads[0]), (neurons, ticket.neurons[0])):
            gates[[unit for unit in range(len(gates)) if unit not in kept]] = 0
    torch.testing.assert_close(before(**batch()).logits, model(**batch()).logits, **CLOSE)
    assert before.config.num_hidden_layers == 3 and len(before.config.kept_heads) == 1
    with pytest.raises(ValueError, match="the ticket has 3 layers, the model 1"):
        ek.compact(model, ek.Ticket([[0]] * 3, [[0]] * 3))


def test_folded_gates_have_the_gradients_of_stock_layers_with_gates() -> None:
    model = ek.enable_gates(small())
    set_gates(model)
    gradients = []
    for each in (model, ek.convert(copy.deepcopy(model))):
        each(**batch(), labels=CLASSES).loss.backward()
        gradients.append({name: p.grad for name, p in each.named_parameters()})
    stock, ours = gradients
    assert ours.keys() == stock.keys() and any("head_gates" in name for name in stock)
    for name, expected in stock.items():
        torch.testing.assert_close(ours[name], expected, msg=name, **CLOSE)


@pytest.mark.filterwarnings("ignore:output_attentions")
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_hidden_states_and_attention_weights_are_those_of_every_round(layers: int) -> None:
    model = small(AlbertModel, num_hidden_layers=layers)
    model.set_attn_implementation("eager")
    asked = {"output_hidden_states": True, "output_attentions": True}
    stock = model(**batch((6, 6)), **asked)
    ours = ek.convert(model)(**batch((6, 6)), **asked)
    torch.testing.assert_close(ours.pooler_output, stock.pooler_output, **CLOSE)
    assert len(ours.hidden_states) == layers + 1 and len(ours.attentions) == layers
    if layers:  # stock records them of layers
        torch.testing.assert_close(ours.hidden_states, stock.hidden_states, **CLOSE)
        torch.testing.assert_close(ours.attentions, stock.attentions, **CLOSE)


def test_attention_output_is_dropped_out_and_the_feed_forward_is_not() -> None:
    model = ek.convert(small(AlbertModel, num_hidden_layers=1, dropout=0.0))
    (layer,) = model.encoder.albert_layer_groups[0].albert_layers
    expected = model(**batch()).last_hidden_state
    model.train()
    layer.dropout.p = 0.5  # stock never calls it
    torch.testing.assert_close(model(**batch()).last_hidden_state, expected, **CLOSE)
    layer.attention.output_dropout.p = 0.5
    assert not torch.allclose(model(**batch()).last_hidden_state, expected)


@pytest.mark.parametrize("field", ["num_hidden_groups", "inner_group_num"])
def test_more_than_one_layer_is_refused(field: str) -> None:
    model = small(AlbertModel, num_hidden_layers=2, **{field: 2})
    with pytest.raises(ValueError, match=f"{field}=2 cannot be converted; the fused ALBERT computes 1"):
        ek.convert(model)


def test_a_layer_that_was_added_is_refused() -> None:
    model = small(AlbertModel)
    layers = model.encoder.albert_layer_groups[0].albert_layers
    layers.append(copy.deepcopy(layers[0]))
    with pytest.raises(ValueError, match="2 layers and a config for one shared layer"):
        ek.convert(model)


def test_what_was_put_around_the_layer_is_refused() -> None:
    model = small(AlbertModel)
    model.encoder.albert_layer_groups[0].register_forward_hook(lambda module, args, output: output)
    with pytest.raises(TypeError, match=r"encoder\.albert_layer_groups\.0 carries forward hooks"):
        ek.convert(model)
