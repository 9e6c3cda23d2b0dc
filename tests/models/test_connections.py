"""Heads that are connected late or share a base, and forwards and hooks that were put on modules."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForTokenClassification,
    BertModel,
    DistilBertModel,
)

import earlybert_kernels as ek
from tests.helpers.tiny_bert import batch, tiny_model

ANSWERS = {"start_positions": torch.tensor([1, 0, 2, 1]), "end_positions": torch.tensor([2, 0, 3, 1])}


def question_answering():
    return tiny_model(cls=BertForQuestionAnswering, num_labels=2)


def loss(model, **labels):
    return model(**batch(), **labels).loss


def test_a_head_whose_base_was_converted_before_is_connected():
    expected = loss(ek.convert(question_answering()), **ANSWERS)
    head = question_answering()
    ek.convert(head.bert)
    ek.convert(ek.convert(head))
    assert len(head._forward_pre_hooks) == 1
    torch.testing.assert_close(loss(head, **ANSWERS), expected)
    ek.restore(head)
    assert "forward" not in vars(head) and "forward" not in vars(head.bert) and not head._forward_pre_hooks


@pytest.mark.parametrize("restored", [0, 1])
def test_two_heads_may_share_a_base(restored):
    heads = [question_answering(), tiny_model(cls=BertForTokenClassification)]
    heads[1].bert = heads[0].bert
    labels = {"labels": torch.arange(36).view(4, 9) % 3}
    stock = [loss(heads[0], **ANSWERS), loss(heads[1], **labels)]
    alone = [ek.convert(copy.deepcopy(head)) for head in heads]
    expected = [loss(alone[0], **ANSWERS), loss(alone[1], **labels)]
    for head in heads:
        ek.convert(head)
    for head, more, value in zip(heads, (ANSWERS, labels), expected, strict=True):
        torch.testing.assert_close(loss(head, **more), value)
    ek.restore(heads[restored])
    for head, more, value in zip(heads, (ANSWERS, labels), stock, strict=True):
        torch.testing.assert_close(loss(head, **more), value)


def test_a_base_model_takes_its_arguments_in_its_own_order():
    model = tiny_model(cls=DistilBertModel).double()
    mask = batch()["attention_mask"]
    inputs = (None, mask, model.get_input_embeddings()(batch()["input_ids"]).detach())  # stock's third is BERT's fifth
    expected = model(*inputs).last_hidden_state[mask.bool()]
    ours = ek.convert(model)(*inputs).last_hidden_state[mask.bool()]
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)
    assert not ek.restore(model)._forward_pre_hooks


@pytest.mark.parametrize("cls", [BertForQuestionAnswering, BertForTokenClassification, BertForMaskedLM])
def test_a_head_with_a_forward_of_its_own_is_refused_and_its_base_taken(cls):
    class Own(cls):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    model = tiny_model(cls=Own)
    with pytest.raises(TypeError, match=r"Own has a forward of its own.*convert\(model\.bert\)"):
        ek.convert(model)
    assert not ek.is_converted(model)
    assert ek.is_converted(ek.convert(model.bert))


def bfloat16(model):
    """As Accelerate prepares a model."""
    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    return model


@pytest.mark.parametrize("cls", [BertForQuestionAnswering, BertForMaskedLM, BertForTokenClassification])
@pytest.mark.parametrize("wrapped_first", [True, False])
def test_a_forward_under_autocast_stays_so(cls, wrapped_first):
    fields = {"num_labels": 2} if cls is BertForQuestionAnswering else {}
    model = tiny_model(cls=cls, **fields)
    more = ANSWERS if cls is BertForQuestionAnswering else {"labels": batch()["token_type_ids"]}
    exact = loss(ek.convert(copy.deepcopy(model)), **more)
    stock = loss(bfloat16(copy.deepcopy(model)), **more)
    model = ek.convert(bfloat16(model)) if wrapped_first else bfloat16(ek.convert(model))
    assert model(**batch())[0].dtype == torch.bfloat16
    torch.testing.assert_close(loss(model, **more), exact, rtol=0.05, atol=0.05)
    ek.restore(model)
    assert model(**batch())[0].dtype == torch.bfloat16
    torch.testing.assert_close(loss(model, **more), stock)
    ek.convert(model)
    torch.testing.assert_close(loss(model, **more), exact, rtol=0.05, atol=0.05)
    if cls is BertForMaskedLM:
        with pytest.raises(TypeError, match="convert it first, then prepare"):
            loss(model, **more, skip_logits=True)


def test_a_wrapped_base_is_refused_before_and_goes_on_after():
    with pytest.raises(TypeError, match="convert it first, then wrap"):
        ek.convert(bfloat16(tiny_model(cls=BertModel)))
    model = bfloat16(ek.convert(tiny_model(cls=BertModel)))
    stock = bfloat16(tiny_model(cls=BertModel))
    mask = batch()["attention_mask"].bool()
    for each in (model, ek.restore(model)):
        ours, theirs = each(**batch()).last_hidden_state[mask], stock(**batch()).last_hidden_state[mask]
        torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.1)


INNER = ("encoder", "encoder.layer.1", "encoder.layer.1.attention.self", "encoder.layer.1.intermediate.dense")


def extend(module, how):
    if how == "forward":
        module.forward = functools.partial(type(module).forward, module)
    elif how == "backward":
        module.register_full_backward_hook(lambda *_: None)
    elif how == "before backward":
        module.register_full_backward_pre_hook(lambda *_: None)
    else:
        module.register_forward_pre_hook(lambda *_: None)


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("how", ["forward", "backward", "before backward", "before forward"])
def test_what_was_put_on_an_inner_module_is_not_dropped(name, how):
    model = tiny_model()
    extend(model.bert.get_submodule(name), how)
    with pytest.raises(TypeError, match=f"{name} (carries|has).*would not run"):
        ek.convert(model)
    assert not ek.is_converted(model)


@pytest.mark.parametrize("name", INNER[2:])
@pytest.mark.parametrize("how", ["forward", "backward", "before backward", "before forward"])
def test_what_is_put_on_an_inner_module_later_is_noticed(name, how):
    model = ek.convert(tiny_model())
    extend(model.bert.get_submodule(name), how)
    with pytest.raises(TypeError, match="put there after the model was converted.*restore"):
        model(**batch())


@pytest.mark.parametrize("reparametrise", [torch.nn.utils.spectral_norm, torch.nn.utils.weight_norm])
def test_weights_that_a_hook_computes_are_noticed(reparametrise):
    model = ek.convert(tiny_model())
    reparametrise(model.bert.encoder.layer[0].intermediate.dense)
    with pytest.raises(TypeError, match="intermediate|dense"):
        model(**batch())
