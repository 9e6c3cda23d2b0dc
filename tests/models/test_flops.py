"""`torch.utils.flop_counter` counts converted models as it counts stock ones, less what they do not compute."""

import pytest
import torch
import transformers
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import earlybert_kernels as ek
from tests.helpers.tiny_bert import batch, packed, set_gates, some_ticket, tiny_config, tiny_model

FULL = batch((9, 9, 9, 9))
#: Ops that compute no matrix product.
WITHOUT_PRODUCTS = {"dropout_add_layer_norm", "embedding_layer_norm", "gather_units", "pad", "unpad"}
WITHOUT_PRODUCTS |= {f"{name}_backward" for name in WITHOUT_PRODUCTS}
IN_PLACE_OR_UNDIFFERENTIATED = {"optimizer_step", "ticket_masks", "ticket_distance"}


def counted(run, *args, **kwargs):
    """FLOPs of a forward, and of the backward of its outputs' sum."""
    with FlopCounterMode(display=False) as forward:
        out = run(*args, **kwargs)
    loss = out if torch.is_tensor(out) else sum(t.sum() for t in out.values())
    with FlopCounterMode(display=False) as backward:
        loss.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def stock(cls=transformers.BertModel, **more):
    # FlopCounterMode knows no formula of the CPU's fused attention.
    torch.manual_seed(0)
    return cls._from_config(tiny_config(**more), attn_implementation="eager").train()


def scores(lengths, heads, head_size):
    """FLOPs of one layer's product of queries with keys, which fused attention computes once more in backward."""
    return sum(2 * heads * head_size * length**2 for length in lengths)


def test_a_dense_model_counts_as_stock():
    model = stock()
    forward, backward = counted(model, **FULL)
    assert forward > 0 and backward > 0
    ours = counted(ek.convert(model), **FULL)
    assert ours == (forward, backward + 3 * scores((9,) * 4, 4, 6))


def test_padding_is_not_counted():
    lengths = (5, 1, 9, 3)
    model = stock()
    model.pooler = None
    alone = [counted(model, **batch((length,))) for length in lengths]
    expected = tuple(map(sum, zip(*alone, strict=True)))
    expected = (expected[0], expected[1] + 3 * scores(lengths, 4, 6))
    assert counted(ek.convert(model), **batch(lengths)) == expected
    inputs = packed(lengths)
    assert counted(model, **inputs) == expected


def test_a_compact_model_counts_as_its_stock_modules_and_a_masked_one_too():
    model = ek.convert(tiny_model(cls=transformers.BertModel))
    ticket = some_ticket(model)
    dense = counted(model, **FULL)
    ek.apply_ticket(model, ticket)
    masked = counted(model, **FULL)
    compact = counted(ek.compact(ek.clear_ticket(model), ticket), **FULL)
    assert masked == compact and compact[0] < dense[0] and compact[1] < dense[1]
    again = sum(scores((9,) * 4, len(heads), 6) for heads in ticket.heads)
    ek.restore(model).set_attn_implementation("eager")
    forward, backward = counted(model, **FULL)
    assert compact == (forward, backward + again)


def test_gates_cost_nothing():
    model = ek.convert(stock())
    dense = counted(model, **FULL)
    set_gates(ek.enable_gates(model))
    assert counted(model, **FULL) == dense


def test_a_head_of_the_first_token_counts_what_it_computes():
    model = ek.convert(stock(transformers.BertForSequenceClassification))
    with FlopCounterMode(display=False) as whole:
        model(**FULL, output_hidden_states=True)
    tokens, queries, hidden, neurons = 36, 4, 24, 40
    linear = 2 * (tokens - queries) * (2 * hidden * hidden + 2 * hidden * neurons)
    attention = 2 * (scores((9,) * 4, 4, 6) - 2 * hidden * 9 * queries)
    assert whole.get_total_flops() - counted(model, **FULL)[0] == linear + attention


def test_the_decoder_counts_labelled_rows_alone():
    model = ek.convert(stock(transformers.BertForMaskedLM))
    labels = torch.full((4, 9), -100)
    none = counted(model, **FULL, labels=labels.index_fill(1, torch.tensor([0]), 7), skip_logits=True)
    more = counted(model, **FULL, labels=labels.index_fill(1, torch.tensor([0, 3]), 7), skip_logits=True)
    row = 2 * 24 * 24 + 2 * 24 * 50  # transform and decoder
    assert (more[0] - none[0], more[1] - none[1]) == (4 * row, 4 * 2 * row)


@pytest.mark.parametrize("active", [None, 2])
def test_ops_by_themselves(active):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(6, 4, 8, generator=generator, requires_grad=True) for _ in range(3))
    offsets = torch.tensor([0, 4, 6], dtype=torch.int32)
    mask = None if active is None else torch.arange(4) < active
    product = 2 * (active or 4) * 8 * (4 * 4 + 2 * 2)
    assert counted(ek.ops.attention, q, k, v, offsets, 4, head_mask=mask, backend="cpu") == (2 * product, 5 * product)

    x, w_in, b_in, w_out, b_out = (
        torch.randn(*shape, generator=generator, requires_grad=True) for shape in ((6, 8), (4, 8), (4,), (8, 4), (8,))
    )
    product = 2 * 6 * 8 * (active or 4)
    arguments = (x, w_in, b_in, w_out, b_out)
    assert counted(ek.ops.feed_forward, *arguments, neuron_mask=mask, backend="cpu") == (2 * product, 4 * product)


def test_tensors_without_values_count_as_the_longest_they_may_be():
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        q, offsets, mask = torch.empty(6, 4, 8), torch.empty(3, dtype=torch.int32), torch.ones(4, dtype=torch.bool)
        torch.ops.earlybert.attention.cpu(q, q, q, offsets, 4, offsets, 4, mask, None, None, 0.0, 1.0, None, True)
    assert counter.get_total_flops() == 2 * (2 * 4 * 8 * 4 * 4) * 2


@pytest.mark.parametrize(("window", "scores"), [(0, 6), (1, 10 + 4), (2, 14 + 4), (9, 16 + 4)])
def test_with_a_window_the_scores_of_near_tokens_count(window, scores):
    q, offsets = torch.randn(6, 4, 8), torch.tensor([0, 4, 6], dtype=torch.int32)
    with FlopCounterMode(display=False) as counter:
        ek.ops.attention(q, q, q, offsets, 4, window=window, backend="cpu")
    assert counter.get_total_flops() == 2 * (2 * 4 * 8) * scores


def test_every_op_with_products_has_a_formula():
    names = {n.split("::")[1].split(".")[0] for n in torch._C._dispatch_get_all_op_names() if "earlybert::" in n}
    known = {packet._qualified_op_name.split("::")[1] for packet in flop_registry if "earlybert" in str(packet)}
    without = WITHOUT_PRODUCTS | IN_PLACE_OR_UNDIFFERENTIATED
    assert known == names - without and {"attention_sublayer", "masked_lm_loss_backward"} <= known
