import copy

import pytest
import torch
import transformers

import earlybert_kernels as ek
from tests.helpers.bert_heads import ALL_HEADS, HEADS, LENGTHS, MASK, SPANS, model_of
from tests.helpers.tiny_bert import batch, tiny_model


def test_every_bert_head_of_transformers_is_covered():
    from transformers.models.bert import modeling_bert

    heads = {n for n in modeling_bert.__all__ if n.startswith("BertFor") or n == "BertLMHeadModel"}
    assert heads == {*HEADS, "BertForMultipleChoice"}


@pytest.mark.parametrize("name", ALL_HEADS)
@pytest.mark.parametrize("padded", [True, False])
def test_head_equals_stock(name, padded):
    labels, outputs = ALL_HEADS[name]
    inputs = batch(LENGTHS) if padded else batch((9, 9, 9, 9))
    if not padded:
        del inputs["attention_mask"]
    real = MASK if padded else torch.ones_like(MASK)
    model = model_of(name)
    stock = model(**inputs, **labels)
    model.zero_grad()
    stock.loss.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    ek.convert(model)
    out = model(**inputs, **labels)
    for field, token_wise in outputs.items():
        ours, theirs = out[field], stock[field]
        assert ours.shape == theirs.shape
        if token_wise:
            ours, theirs = ours[real], theirs[real]
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    # The stock QA loss lets padding compete for the answer; see the test below.
    if not (padded and name in SPANS):
        torch.testing.assert_close(out.loss, stock.loss, rtol=1e-5, atol=1e-5)
        model.zero_grad()
        out.loss.backward()
        for n, p in model.named_parameters():
            torch.testing.assert_close(p.grad, expected.get(n), rtol=1e-4, atol=1e-5)


def test_multiple_choice_equals_stock():
    model = tiny_model(cls=transformers.BertForMultipleChoice)
    inputs = {n: t.view(2, 2, -1) for n, t in batch(LENGTHS).items()}
    labels = torch.tensor([1, 0])
    stock = model(**inputs, labels=labels)
    out = ek.convert(model)(**inputs, labels=labels)
    torch.testing.assert_close(out.logits, stock.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.loss, stock.loss, rtol=1e-5, atol=1e-5)


def test_question_answering_loss_does_not_depend_on_padding():
    labels, _ = HEADS["BertForQuestionAnswering"]
    stock = model_of("BertForQuestionAnswering")
    model = ek.convert(copy.deepcopy(stock))
    inputs = batch(LENGTHS)
    together = model(**inputs, **labels)
    alone = []
    for row, length in enumerate(LENGTHS):
        one = {n: t[row : row + 1, :length] for n, t in inputs.items()}
        one |= {n: t[row : row + 1] for n, t in labels.items()}
        alone.append(stock(**one).loss)
    torch.testing.assert_close(together.loss, torch.stack(alone).mean(), rtol=1e-5, atol=1e-5)
    assert (together.start_logits[~MASK] == torch.finfo(torch.float32).min).all()
    assert torch.isfinite(together.loss)
    as_tuple = model(**inputs, **labels, return_dict=False)
    assert torch.equal(as_tuple[0], together.loss)


def test_masked_lm_without_logits_has_the_same_loss_and_gradients():
    model = ek.convert(model_of("BertForMaskedLM"))
    inputs = batch(LENGTHS)
    labels = torch.full_like(MASK, -100, dtype=torch.long)
    labels[0, 2], labels[2, 8], labels[3, 0] = 7, 1, 49
    full = model(**inputs, labels=labels)
    expected = torch.autograd.grad(full.loss, list(model.parameters()))
    rows = []
    handle = model.cls.predictions.transform.register_forward_hook(lambda m, a, out: rows.append(len(out)))
    short = model(**inputs, labels=labels, skip_logits=True)
    handle.remove()
    assert rows == [3] and short.logits is None
    torch.testing.assert_close(short.loss, full.loss, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(torch.autograd.grad(short.loss, list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="skip_logits=True needs labels"):
        model(**inputs, skip_logits=True)
