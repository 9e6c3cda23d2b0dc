"""The packed door: a batch that comes as one row of tokens, with the offsets of its sequences."""

import pytest
import torch
import transformers
from transformers import DataCollatorWithFlattening

import earlybert_kernels as ek
from tests.helpers.bert_heads import ALL_HEADS, CAUSAL, HEADS, IGNORED, LENGTHS, MASK, model_of
from tests.helpers.tiny_bert import batch, packed, set_gates, some_ticket, tiny_model

LENGTHS_OF_18 = (5, 1, 9, 3)


def train(model, inputs):
    model.zero_grad()
    outputs = model(**inputs)
    outputs.loss.backward()
    return outputs, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("name", ALL_HEADS)
@pytest.mark.parametrize("pruned", [False, True])
def test_packed_equals_padded(name, pruned):
    labels, token_wise = ALL_HEADS[name]
    model = ek.convert(model_of(name).double())
    if pruned:
        set_gates(ek.enable_gates(model))
        ek.apply_ticket(model, some_ticket(model))
    padded, theirs = train(model, {**batch(LENGTHS), **labels})
    packed_labels = {n: t[MASK].unsqueeze(0) if t.shape == MASK.shape else t for n, t in labels.items()}
    ours_out, ours = train(model, {**packed(LENGTHS), **packed_labels})
    if name not in CAUSAL:  # their labels are those of the next token, which for the last is the next sequence's
        torch.testing.assert_close(ours_out.loss, padded.loss, rtol=1e-10, atol=1e-10)
        same(ours, theirs)
    for output, of_tokens in token_wise.items():
        expected = padded[output][MASK].unsqueeze(0) if of_tokens else padded[output]
        torch.testing.assert_close(ours_out[output], expected, rtol=1e-10, atol=1e-10)


def test_hidden_states_and_pooled_tokens():
    model = ek.convert(tiny_model(cls=transformers.BertModel).double())
    padded = model(**batch(LENGTHS), output_hidden_states=True)
    ours = model(**packed(LENGTHS), output_hidden_states=True)
    assert ours.last_hidden_state.shape == (1, sum(LENGTHS), 24)
    torch.testing.assert_close(ours.pooler_output, padded.pooler_output, rtol=1e-10, atol=1e-10)
    assert len(ours.hidden_states) == 4
    for packed_states, states in zip(ours.hidden_states, padded.hidden_states, strict=True):
        torch.testing.assert_close(packed_states, states[MASK].unsqueeze(0), rtol=1e-10, atol=1e-10)


def test_positions_count_from_0_in_every_sequence():
    model = ek.convert(tiny_model())
    inputs = packed(LENGTHS)
    logits = model(**inputs).logits
    del inputs["position_ids"]
    assert torch.equal(model(**inputs).logits, logits)


@pytest.mark.parametrize("room", [0, 2])
def test_masked_lm_loss_without_logits(room):
    model = ek.convert(tiny_model(cls=transformers.BertForMaskedLM).double())
    inputs = {**packed(LENGTHS), "labels": IGNORED[MASK].unsqueeze(0)}
    inputs["labels"][:, ::3] = -100
    labelled = int((inputs["labels"] != -100).sum())
    whole, theirs = train(model, inputs)
    without, ours = train(model, {**inputs, "skip_logits": True, "max_labelled": labelled + room})
    assert without.logits is None
    torch.testing.assert_close(without.loss, whole.loss, rtol=1e-10, atol=1e-10)
    same(ours, theirs)
    with pytest.raises(ValueError, match=f"{labelled} tokens are labelled, more than max_labelled"):
        model(**inputs, skip_logits=True, max_labelled=labelled - 1)


@pytest.mark.parametrize(
    "name",
    ["BertForSequenceClassification", "BertForTokenClassification", "BertForQuestionAnswering", "BertForMaskedLM"],
)
def test_nothing_depends_on_values(name, monkeypatch):
    """On the meta device tensors have none, so that whoever asks for one fails."""
    # Its definition does ask, unlike the GPU's backends, which have tests of their own.
    monkeypatch.setattr(ek.ops, "masked_lm_loss", lambda hidden, *_, max_labelled: hidden[:max_labelled].sum())
    model = ek.enable_gates(ek.convert(model_of(name)))
    inputs = packed(LENGTHS)
    labels = {n: t[MASK].unsqueeze(0) if t.shape == MASK.shape else t for n, t in HEADS[name][0].items()}
    if name == "BertForMaskedLM":
        labels |= {"skip_logits": True, "max_labelled": 7}
    model.to("meta").train()
    meta = {n: v.to("meta") if torch.is_tensor(v) else v for n, v in {**inputs, **labels}.items()}
    loss = model(**meta).loss
    loss.backward()
    assert loss.shape == () and all(p.grad is not None for p in ek.head_gates(model))


def test_what_transformers_collator_makes_is_taken():
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    rows = [[2, 7, 9], [2], [2, 30, 31, 32, 3]]
    inputs = collate([{"input_ids": row, "labels": row} for row in rows])
    assert {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "position_ids"} <= inputs.keys()
    model = ek.convert(tiny_model(cls=transformers.BertForMaskedLM))
    logits = model(**inputs).logits
    for row, part in zip(rows, logits[0].split([3, 1, 5]), strict=True):
        torch.testing.assert_close(part, model(torch.tensor([row])).logits[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"attention_mask": torch.ones(1, 18)}, ValueError, "attention_mask and cu_seq_lens_q were both given"),
        ({"cu_seq_lens_q": torch.tensor([0, 5, 6, 15, 18])}, TypeError, "cu_seq_lens_q is torch.int64"),
        ({"cu_seq_lens_q": torch.tensor([0, 5, 17]).int()}, ValueError, "from 0 to 17, expected 0 to the batch's 18"),
        ({"cu_seq_lens_q": torch.zeros(1, 5).int()}, ValueError, r"has shape \(1, 5\), expected"),
        ({"cu_seq_lens_k": torch.tensor([0, 5, 6, 14, 18]).int()}, ValueError, "cu_seq_lens_k differs"),
        ({"max_length_q": torch.tensor(9)}, TypeError, r"max_length_q is tensor\(9\)"),
        ({"max_length_q": None}, TypeError, "max_length_q is None"),
        ({"max_length_q": 8}, ValueError, "sequences of 1 to 9 tokens"),
        ({"max_length_k": 8}, ValueError, "max_length_k is 8, expected max_length_q, 12"),
        ({"cu_seq_lens_q": None}, ValueError, "needs cu_seq_lens_q"),
        ({"input_ids": torch.ones(2, 9).long()}, ValueError, r"one row of tokens, \(1, T\)"),
    ],
)
def test_wrong_input_is_refused(change, error, message):
    model = ek.convert(tiny_model())
    with pytest.raises(error, match=message):
        model(**{**packed(LENGTHS_OF_18), **change})


def test_multiple_choice_is_refused():
    model = ek.convert(tiny_model(cls=transformers.BertForMultipleChoice))
    with pytest.raises(ValueError, match="BertForMultipleChoice takes no packed batch"):
        model(**packed(LENGTHS))


def test_left_padding_is_noticed_only_where_it_matters():
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    ids = torch.tensor([[4, 5, 6], [0, 7, 8]])
    with pytest.raises(ValueError, match="a row begins with padding"):
        ek.convert(tiny_model())(ids, attention_mask=mask)
    model = ek.convert(tiny_model(cls=transformers.BertForTokenClassification))
    alone = model(ids[1:, 1:], position_ids=torch.tensor([[1, 2]])).logits
    torch.testing.assert_close(model(ids, attention_mask=mask).logits[1:, 1:], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("door", ["mask on the CPU", "packed"])
def test_no_step_waits_for_the_gpu(door):
    model = ek.convert(tiny_model()).cuda()
    inputs = batch(LENGTHS) if door == "mask on the CPU" else packed(LENGTHS)
    inputs = {n: t.cuda() if torch.is_tensor(t) and n != "attention_mask" else t for n, t in inputs.items()}
    labels = torch.zeros(len(LENGTHS), dtype=torch.int64, device="cuda")
    model(**inputs, labels=labels).loss.backward()  # compiles kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(**inputs, labels=labels).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
