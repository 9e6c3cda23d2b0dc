"""What a caller can ask for beside a model's outputs, next to stock: hidden states, attentions, checkpointing."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import BertForMaskedLM, BertForQuestionAnswering, BertForTokenClassification, BertModel
from transformers.modeling_layers import GradientCheckpointingLayer

import earlybert_kernels as ek
from tests.helpers.tiny_bert import batch, packed, some_ticket, tiny_model

LENGTHS = (5, 1, 9, 3)


def eager(cls, **more):
    model = tiny_model(cls=cls, **more)
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("selection", [[0], [1, 3], [-1], (2, -4), [1, 1]])
def test_selected_hidden_states(selection) -> None:
    stock = eager(BertModel)
    expected = stock(**batch((6, 6)), output_hidden_states=True).hidden_states
    states = ek.convert(stock)(**batch((6, 6)), output_hidden_states=selection).hidden_states
    wanted = {number % len(expected) for number in selection}
    assert [number for number, state in enumerate(states) if state is not None] == sorted(wanted)
    assert len(states) == len(expected)
    for number in wanted:
        torch.testing.assert_close(states[number], expected[number])


@pytest.mark.parametrize("number", [2, -1, 0])
@pytest.mark.parametrize("by_config", [False, True])
def test_one_hidden_state(number: int, by_config: bool) -> None:
    stock = eager(BertModel)
    expected = stock(**batch((6, 6)), output_hidden_states=True).hidden_states
    model = ek.convert(stock)
    if by_config:
        try:
            model.config.output_hidden_states = number
        except StrictDataclassFieldValidationError:
            pytest.skip("the config of this version of transformers takes no numbers")
    states = model(**batch((6, 6)), **({} if by_config else {"output_hidden_states": number})).hidden_states
    if number == 0:
        assert states is None
        return
    assert [place for place, state in enumerate(states) if state is not None] == [number % len(expected)]
    torch.testing.assert_close(states[number], expected[number])


def test_a_hidden_state_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="names 4; the model has hidden states 0 to 3"):
        ek.convert(tiny_model())(**batch(), output_hidden_states=[4])


@pytest.mark.parametrize("by_config", [False, True])
@pytest.mark.parametrize("cls", [BertModel, BertForTokenClassification, BertForQuestionAnswering])
def test_attention_weights_are_those_of_stock_between_real_tokens(cls, by_config: bool) -> None:
    stock = eager(cls, num_labels=2)
    inputs = batch(LENGTHS)
    expected = stock(**inputs, output_attentions=True).attentions
    model = ek.convert(stock)
    model.config.output_attentions = by_config
    with pytest.warns(UserWarning, match="slowly"):
        attentions = model(**inputs, **({} if by_config else {"output_attentions": True})).attentions
    real = inputs["attention_mask"].bool()
    both = real[:, None, :, None] & real[:, None, None, :]
    assert len(attentions) == len(expected)
    for ours, theirs in zip(attentions, expected, strict=True):
        torch.testing.assert_close(ours, theirs * both)


@pytest.mark.filterwarnings("ignore:output_attentions")
@pytest.mark.parametrize("cls", [BertModel, BertForTokenClassification])
def test_a_loss_of_attention_weights_has_the_gradients_of_stock(cls) -> None:
    stock = eager(cls).double()
    model, gradients = ek.convert(copy.deepcopy(stock)), []
    for each in (stock, model):
        attentions = each(**batch((6, 6)), output_attentions=True).attentions
        sum((weights**2).sum() * (number + 1) for number, weights in enumerate(attentions)).backward()
        gradients.append({name: p.grad for name, p in each.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any("query" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("make", [ek.convert, lambda model: ek.convert(ek.compact(model, some_ticket(model)))])
@pytest.mark.parametrize("cls", [BertModel, BertForMaskedLM, BertForQuestionAnswering, BertForTokenClassification])
def test_a_signature_says_what_can_be_asked_for(cls, make) -> None:
    """Transformers' own tests, among others, read there whether a model gives attention weights."""
    stock = tiny_model(cls=cls, num_labels=2)
    expected = inspect.signature(stock.forward).parameters["kwargs"].annotation
    found = inspect.signature(make(stock).forward).parameters["kwargs"].annotation
    assert found.__args__ == expected.__args__
    assert "output_attentions" in found.__args__[0].__annotations__


@pytest.mark.filterwarnings("ignore:output_attentions")
def test_attention_weights_of_a_classifier_and_of_a_packed_batch() -> None:
    stock = eager(BertModel)
    lengths = (4, 7, 2)
    expected = stock(**batch(lengths), output_attentions=True).attentions[-1]
    model = ek.convert(stock)
    together = model(**packed(lengths, longest=7), output_attentions=True).attentions[-1]
    first = model(**batch(lengths), first_token_only=True, output_attentions=True).attentions[-1]
    torch.testing.assert_close(together, first)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(together[row, :, :length, :length], expected[row, :, :length, :length])


@pytest.mark.filterwarnings("ignore:output_attentions")
def test_attention_weights_of_dropped_heads_are_zero() -> None:
    stock = tiny_model(cls=BertModel)
    ticket = some_ticket(stock)
    full = ek.convert(copy.deepcopy(stock))(**batch(), output_attentions=True).attentions
    masked = ek.apply_ticket(ek.convert(copy.deepcopy(stock)), ticket)(**batch(), output_attentions=True).attentions
    compact = ek.convert(ek.compact(stock, ticket))(**batch(), output_attentions=True).attentions
    torch.testing.assert_close(masked[0][:, ticket.heads[0]], full[0][:, ticket.heads[0]])
    for layer, heads in enumerate(ticket.heads):
        dropped = sorted(set(range(4)) - set(heads))
        assert masked[layer][:, dropped].count_nonzero() == 0
        torch.testing.assert_close(compact[layer], masked[layer][:, heads])


@pytest.mark.parametrize("every", [1, 2])
def test_checkpointing_recomputes_the_layers_that_stock_does(every: int) -> None:
    stock = tiny_model(cls=BertForTokenClassification, dropout=0.1).train()
    model = ek.convert(copy.deepcopy(stock))
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert layers == list(model.bert.encoder.layer)
    options = {} if every == 1 else {"every_n_layers": every}
    for each in (stock, model):
        try:
            each.gradient_checkpointing_enable(**options)
        except TypeError:
            pytest.skip("this version of transformers checkpoints all layers or none")
    recomputed = [layer.gradient_checkpointing for layer in model.bert.encoder.layer]
    assert recomputed == [layer.gradient_checkpointing for layer in stock.bert.encoder.layer]
    assert any(recomputed)
    inputs = {**batch(LENGTHS), "labels": torch.zeros(4, 9, dtype=torch.int64)}
    torch.manual_seed(5)
    model(**inputs).loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_disable()
    torch.manual_seed(5)
    model(**inputs).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=name)


def test_left_padding_is_only_refused_where_the_pooled_token_is_read() -> None:
    inputs = {name: value.flip(1) for name, value in batch(LENGTHS).items()}
    stock = tiny_model(cls=BertModel)
    expected = stock(**inputs).last_hidden_state
    outputs = ek.convert(stock)(**inputs)
    assert outputs.pooler_output is None
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(outputs.last_hidden_state[real], expected[real])
    with pytest.raises(ValueError, match="padding_side = 'right'"):
        ek.convert(tiny_model())(**inputs)
