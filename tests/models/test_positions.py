"""Positions of a family that counts tokens, from the padding token's id + 1 on, and not columns: RoBERTa."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import RobertaConfig, RobertaForTokenClassification

import earlybert_kernels as ek
from tests.helpers.tiny_bert import tiny_model

PAD = 1
#: Padding behind, before and within a row, and a padding id that the mask says is a token.
IDS = torch.tensor([[5, 6, 7, 8, 1, 1], [1, 1, 9, 10, 11, 12], [5, 1, 7, 8, 9, 1], [5, 1, 7, 8, 9, 10]])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [1, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
REAL = MASK.bool()
LABELS = torch.where(REAL, IDS % 3, -100)


@pytest.fixture
def stock():
    return tiny_model(cls=RobertaForTokenClassification, pad_token_id=PAD).double()


def trained(model, **inputs):
    model.zero_grad()
    outputs = model(**inputs)
    outputs.loss.backward()
    return outputs, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("embedded", [False, True])
def test_a_padded_batch_has_the_positions_that_stock_gives_it(stock, embedded: bool) -> None:
    words = stock.get_input_embeddings()(IDS).detach()
    inputs = {"inputs_embeds": words} if embedded else {"input_ids": IDS}
    inputs |= {"attention_mask": MASK, "labels": LABELS}
    expected, gradients = trained(stock, **inputs)
    outputs, ours = trained(ek.convert(stock), **inputs)
    torch.testing.assert_close(outputs.logits[REAL], expected.logits[REAL], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(outputs.loss, expected.loss, rtol=1e-9, atol=1e-10)
    assert ours.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, msg=name, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("positions", ["none", "from 0", "the model's own"])
def test_packed_sequences_have_the_positions_that_stock_gives_them_alone(stock, positions: str) -> None:
    rows = [torch.tensor([5, 6, 7, 8]), torch.tensor([9]), torch.tensor([5, PAD, 7, 8, 9, 10])]
    if positions != "none":
        rows[2][1] = 6  # only ids say that this one is not counted
    expected = torch.cat([stock(row[None]).logits[0] for row in rows])
    batch = ek.PackedCollator()([{"input_ids": row} for row in rows])
    if positions == "none":
        del batch["position_ids"]
    elif positions == "the model's own":
        batch["position_ids"] = batch["position_ids"] + PAD + 1
    torch.testing.assert_close(ek.convert(stock)(**batch).logits[0], expected, rtol=1e-9, atol=1e-10)


def test_a_padded_batch_keeps_the_positions_that_it_is_given(stock) -> None:
    given = torch.arange(6).flip(0).expand(4, 6)
    expected = stock(IDS, attention_mask=MASK, position_ids=given).logits
    ours = ek.convert(copy.deepcopy(stock))(IDS, attention_mask=MASK, position_ids=given).logits
    torch.testing.assert_close(ours[REAL], expected[REAL], rtol=1e-9, atol=1e-10)


def test_there_is_no_position_for_a_longer_sequence(stock) -> None:
    model = ek.convert(stock)
    longest = model.config.max_position_embeddings - PAD - 1
    ids = torch.full((1, longest + 1), 7)
    assert model(ids[:, 1:]).logits.shape[1] == longest
    with pytest.raises(ValueError, match=f"{longest + 1} tokens is longer than the {longest} that the model has"):
        model(ids)


def test_positions_need_a_padding_token_to_count_from() -> None:
    with pytest.raises(ValueError, match="config.pad_token_id is None, and the positions of RoBERTa count from it"):
        ek.check_convertible(RobertaConfig(pad_token_id=None))
