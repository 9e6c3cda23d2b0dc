"""Batches and models at the edge: rows of padding alone, no layers, and the graphs that cannot be recorded."""

import pytest
import torch
import transformers

import earlybert_kernels as ek
from tests.helpers.bert_heads import HEADS, model_of
from tests.helpers.tiny_bert import batch, packed, tiny_model

POOLED = ("BertModel", "BertForSequenceClassification", "BertForNextSentencePrediction", "BertForPreTraining")
OF_TOKENS = ("BertForMaskedLM", "BertForTokenClassification", "BertForQuestionAnswering", "BertLMHeadModel")


def converted(name):
    return ek.convert(model_of(name))


def all_padding():
    return {n: torch.zeros_like(t) for n, t in batch((3, 2)).items()}


@pytest.mark.parametrize("name", POOLED)
@pytest.mark.parametrize("inputs", [batch((3, 0, 2)), all_padding(), packed((3, 0, 2))], ids=["row", "all", "packed"])
def test_a_sequence_without_tokens_has_nothing_to_pool(name, inputs):
    model = converted(name)
    if name == "BertModel":  # which may be asked for its tokens alone
        assert model(**inputs).pooler_output is None
        return
    with pytest.raises(ValueError, match="holds no token, not even the first, which is read"):
        model(**inputs)


@pytest.mark.parametrize("name", OF_TOKENS)
def test_heads_of_tokens_take_rows_without_tokens(name):
    model, inputs = converted(name), batch((3, 0, 2))
    expected, ours = model(**{n: t[[0, 2]] for n, t in inputs.items()}), model(**inputs)
    for field, value in expected.items():
        torch.testing.assert_close(ours[field][[0, 2]], value, rtol=1e-6, atol=1e-6)
    assert {n: t.shape for n, t in model(**all_padding()).items()} == {n: t.shape for n, t in expected.items()}
    states = model.bert(**all_padding(), output_hidden_states=True)
    assert len(states.hidden_states) == 4 and not any(t.any() for t in states.hidden_states)
    assert not states.last_hidden_state.any()


@pytest.mark.parametrize("options", [{}, {"max_labelled": 3}])
def test_a_batch_of_padding_alone_has_no_labels(options):
    model = converted("BertForMaskedLM")
    loss = model(**all_padding(), labels=torch.ones(2, 3, dtype=torch.long), skip_logits=True, **options).loss
    loss.backward()
    assert loss.isnan()  # the mean of nothing, as in stock
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("make_batch", [batch, packed])
def test_no_layers(name, make_batch):
    fields = {"num_labels": 2} if name == "BertForQuestionAnswering" else {}
    model = tiny_model(cls=getattr(transformers, name), num_hidden_layers=0, **fields)
    lengths = (5, 1, 9, 3)
    stock = model(**batch(lengths))
    mask = batch(lengths)["attention_mask"].bool()
    ours = ek.convert(model)(**make_batch(lengths))
    for field, of_tokens in HEADS[name][1].items():
        theirs, value = stock[field], ours[field]
        if of_tokens:
            theirs, value = theirs[mask], value[mask] if make_batch is batch else value.squeeze(0)
        torch.testing.assert_close(value, theirs, rtol=1e-5, atol=1e-5)
    assert len(model(**make_batch(lengths), output_hidden_states=True).hidden_states) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["BertModel", "BertForSequenceClassification", "BertForQuestionAnswering"])
def test_a_trace_is_refused(name):
    model, inputs = converted(name), batch((5, 5))
    with pytest.raises(RuntimeError, match="cannot be traced.*restore"):
        torch.jit.trace(model, (inputs["input_ids"], inputs["attention_mask"]), strict=False)
    with pytest.raises(RuntimeError, match="cannot be traced.*restore"):
        torch.jit.trace(model, (inputs["input_ids"],), strict=False)
    traced = torch.jit.trace(ek.restore(model), (inputs["input_ids"], inputs["attention_mask"]), strict=False)
    padded = batch((3, 5))
    ours = traced(padded["input_ids"], padded["attention_mask"])
    theirs = model(padded["input_ids"], padded["attention_mask"])
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_an_onnx_export_is_refused(tmp_path, monkeypatch):
    model, inputs = converted("BertForSequenceClassification"), batch((5, 5))
    arguments = (inputs["input_ids"], inputs["attention_mask"])
    with pytest.raises(RuntimeError, match="exported to ONNX.*restore"):
        torch.onnx.export(model, arguments, tmp_path / "model.onnx", dynamo=False)
    # The newer exporter needs packages of its own; it is torch.export, with this to tell by.
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    with pytest.raises(RuntimeError, match="exported to ONNX.*restore"):
        torch.export.export(model, (inputs["input_ids"],))


@pytest.mark.parametrize("name", ["BertModel", "BertForSequenceClassification", "BertForQuestionAnswering"])
def test_torch_export_takes_packed_batches_and_no_mask(name):
    model = converted(name)
    with pytest.raises(RuntimeError, match="torch.export .* takes no attention_mask.*restore"):
        torch.export.export(model, (), batch((5, 3)))
    flat = packed((5, 2, 3))
    del flat["cu_seq_lens_q"], flat["max_length_q"]
    with pytest.raises(ValueError, match="cannot be read here"):
        torch.export.export(model, (), flat)
    program = torch.export.export(model, (), packed((5, 2, 3))).module()
    inputs = packed((1, 7, 2), seed=3)
    theirs = model(**inputs)
    for field, value in program(**inputs).items():
        torch.testing.assert_close(value, theirs[field], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [(True, False), (False, True)])
def test_attention_dropout_follows_the_mode_that_stock_follows(training) -> None:
    """Stock reads the mode of the attention, and not that of the Dropout module inside it."""
    random = []
    for convert in (lambda model: model, ek.convert):
        model = convert(tiny_model())
        for layer in model.bert.encoder.layer:
            attention = layer.attention.self
            attention.dropout.p = 0.5
            attention.training, attention.dropout.training = training
        random.append(not torch.equal(model(**batch()).logits, model(**batch()).logits))
    assert random == [training[0]] * 2


def test_a_masked_lm_loss_of_no_label_is_not_a_number_as_in_stock() -> None:
    stock = tiny_model(cls=transformers.BertForMaskedLM)
    labels = torch.full_like(batch()["input_ids"], -100)
    assert stock(**batch(), labels=labels).loss.isnan()
    model = ek.convert(stock)
    for more in ({}, {"skip_logits": True}, {"skip_logits": True, "max_labelled": 3}):
        assert model(**batch(), labels=labels, **more).loss.isnan()


@pytest.mark.parametrize("mask", [None, torch.ones(2, 20)], ids=["no-mask", "mask"])
def test_sequences_longer_than_the_positions_are_refused(mask):
    model = ek.convert(tiny_model(max_position_embeddings=16))
    ids = torch.ones(2, 20, dtype=torch.long)
    with pytest.raises(ValueError, match=r"a sequence of 20 tokens is longer than the 16 .*truncation"):
        model(ids, attention_mask=mask)
