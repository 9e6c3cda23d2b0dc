"""What `FlopCounterMode` says of the ops, next to what it says of stock modules that do the same."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_bert import batch, some_ticket, tiny_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertForMaskedLM, BertModel

import earlybert_kernels as ek

BATCH, LENGTH = 3, 7


def counted(model, inputs, *, backward: bool = False) -> int:
    with FlopCounterMode(display=False) as counter:
        outputs = model(**inputs)
        if backward:
            (outputs.last_hidden_state.sum() + outputs.pooler_output.sum()).backward()
    return counter.get_total_flops()


def bert(cls=BertModel, **more):
    model = tiny_model(cls=cls, **more)
    model.set_attn_implementation("eager")  # whose products torch counts on every device
    return model


def attention_products(model, lengths: list[int]) -> int:
    """Operations of one product over all pairs of tokens of the same sequence, of all layers."""
    return 2 * sum(length**2 for length in lengths) * model.config.hidden_size * model.config.num_hidden_layers


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_forward_and_backward_of_a_full_batch_are_the_stock_ones(backend: str) -> None:
    stock, inputs = bert(), batch((LENGTH,) * BATCH)
    forward, both = (counted(stock, inputs, backward=backward) for backward in (False, True))
    model = ek.convert(copy.deepcopy(stock))
    with ek.use_backend(backend):
        assert counted(model, inputs) == forward > 0
        # Stock keeps its probabilities; here, as in torch's fused attention, one more product computes them again.
        assert counted(model, inputs, backward=True) == both + attention_products(stock, [LENGTH] * BATCH)


def test_padding_is_not_counted() -> None:
    lengths = (5, 1, 7)
    model = ek.convert(bert())
    alone = [counted(model, batch((length,))) for length in lengths]
    assert counted(model, batch(lengths)) == sum(alone)


def test_only_active_units_are_counted() -> None:
    stock, inputs = bert(), batch((LENGTH,) * BATCH)
    ticket = some_ticket(stock)
    masked = ek.apply_ticket(ek.convert(copy.deepcopy(stock)), ticket)
    compact = ek.compact(copy.deepcopy(stock), ticket)
    small = counted(compact, inputs)
    assert small < counted(stock, inputs)
    assert counted(masked, inputs) == small
    assert counted(ek.reserve_masks(masked), inputs) == small
    assert counted(ek.convert(compact), inputs) == small
    assert counted(masked, inputs, backward=True) == counted(compact, inputs, backward=True)


def test_first_token_only_counts_one_query_a_sequence() -> None:
    stock = bert()
    model = ek.convert(copy.deepcopy(stock))
    inputs = batch((LENGTH,) * BATCH)
    config, dropped = stock.config, BATCH * (LENGTH - 1)
    per_token = 2 * config.hidden_size * (2 * config.hidden_size + 2 * config.intermediate_size)
    expected = counted(stock, inputs) - dropped * (per_token + 2 * 2 * LENGTH * config.hidden_size)
    assert counted(model, {**inputs, "first_token_only": True}) == expected


def test_the_decoder_counts_labelled_rows_alone() -> None:
    inputs = batch((LENGTH,) * BATCH)
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, 1] = labels[2, 3] = 4
    model = ek.convert(bert(BertForMaskedLM))
    config = model.config
    encoder = counted(model.bert, inputs)
    head = 2 * 2 * config.hidden_size * (config.hidden_size + config.vocab_size)  # two rows
    assert counted(model, {**inputs, "labels": labels, "skip_logits": True}) == encoder + head


@pytest.mark.parametrize("kept", [None, torch.tensor([True, False, True, False])])
def test_attention_counts_computed_heads(kept) -> None:
    q, k, v = (torch.randn(9, 4, 6, requires_grad=True) for _ in range(3))
    offsets = torch.tensor([0, 2, 9], dtype=torch.int32)
    with FlopCounterMode(display=False) as counter:
        out = ek.ops.attention(q, k, v, offsets, 7, head_mask=kept)
    one = 2 * (4 + 49) * 6 * (4 if kept is None else 2)
    assert counter.get_total_flops() == 2 * one
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 5 * one
