"""Tickets kept as masks that change in place."""

import copy

import pytest
import torch
from tiny_bert import batch, set_gates, some_ticket, tiny_model

import earlybert_kernels as ek


def model_with_gates():
    model = ek.enable_gates(ek.convert(tiny_model().double()))
    set_gates(model)
    return model


def results(model):
    model.zero_grad()
    loss = model(**batch(), labels=torch.tensor([0, 2, 1, 1])).loss
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


def masks(model):
    return [m for layer in model.bert.encoder.layer for m in (layer.active_heads, layer.active_neurons)]


def test_masks_run_as_indices_and_stay_the_same_tensors():
    model = model_with_gates()
    reserved = ek.reserve_masks(copy.deepcopy(model))
    before = masks(reserved)
    assert all(m.dtype == torch.bool and m.all() for m in before)
    tickets = [some_ticket(model, seed) for seed in (5, 6)]
    assert tickets[0] != tickets[1]
    changes = [lambda m, t=ticket: ek.apply_ticket(m, t) for ticket in tickets] + [ek.clear_ticket]
    for change in changes:
        (loss, gradients), (expected_loss, expected) = results(change(reserved)), results(change(model))
        torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=1e-12)
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
        assert all(a is b for a, b in zip(masks(reserved), before, strict=True))
        assert str(reserved) == str(model)


def test_an_applied_ticket_stays_when_masks_are_reserved():
    model = ek.apply_ticket(model_with_gates(), some_ticket(tiny_model()))
    loss, _ = results(model)
    torch.testing.assert_close(results(ek.reserve_masks(model))[0], loss, rtol=1e-12, atol=1e-12)
    assert model.bert.encoder.layer[0].is_masked
    with pytest.raises(ValueError, match="a ticket is applied"):
        ek.restore(model)
    ek.restore(ek.clear_ticket(model))
    with pytest.raises(ValueError, match="convert"):
        ek.reserve_masks(model)


def test_compact_and_stock_models_of_masked_ones():
    model = ek.reserve_masks(model_with_gates())
    ticket = some_ticket(model)
    logits = ek.apply_ticket(model, ticket)(**batch()).logits
    torch.testing.assert_close(ek.to_stock(model)(**batch()).logits, logits, rtol=1e-10, atol=1e-10)
    state = model.state_dict()
    assert not [name for name in state if "active" in name]
    small = ek.compact(model, ticket)
    assert all(m is None for m in masks(small))
    torch.testing.assert_close(small(**batch()).logits, logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("wrong", [None, "ticket.json", ([[0]], [[0]])])
def test_what_is_no_ticket_is_refused(wrong):
    model = ek.convert(tiny_model())
    for use in (ek.apply_ticket, ek.compact, ek.check_ticket):
        with pytest.raises(TypeError, match=r"expected an earlybert_kernels.Ticket \(Ticket.load reads"):
            use(model, wrong)
