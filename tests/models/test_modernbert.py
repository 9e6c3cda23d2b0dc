"""What layers as ModernBERT's do beside what every family is tried for: next to stock models in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
    ModernBertModel,
)

import earlybert_kernels as ek
from tests.helpers.tiny_bert import batch, set_gates, some_ticket, tiny_model

CLOSE = {"rtol": 1e-9, "atol": 1e-10}
LENGTHS = (5, 1, 17, 3)
#: Without the biases, as the models that there are.
PLAIN = dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), False)


def model_of(cls=ModernBertForSequenceClassification, shape="small", **fields):
    return tiny_model(shape, cls=cls, **fields).double()


def trained(model, **inputs):
    model.zero_grad()
    outputs = model(**inputs)
    outputs.loss.backward()
    return outputs, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(ours, theirs) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, msg=name, **CLOSE)


@pytest.mark.parametrize("window", [2, 6, 20, 64])
@pytest.mark.parametrize("shape", ["small", "one_head", "tanh_gelu", "relu"])
@pytest.mark.parametrize("fields", [{}, PLAIN], ids=["biases", "no biases"])
def test_any_shape_and_window_is_as_stock(shape, window, fields) -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"][: 3 if shape == "small" else 2]
    model = model_of(ModernBertForTokenClassification, shape, local_attention=window, layer_types=kinds, **fields)
    inputs = batch(LENGTHS)
    inputs["labels"] = torch.where(inputs["attention_mask"] == 1, inputs["input_ids"] % 3, -100)
    theirs, gradients = trained(model, **inputs)
    outputs, ours = trained(ek.convert(model), **inputs)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(outputs.loss, theirs.loss, **CLOSE)
    torch.testing.assert_close(outputs.logits[real], theirs.logits[real], **CLOSE)
    assert_same(ours, gradients)


@pytest.mark.parametrize("cls", [ModernBertModel, ModernBertForMaskedLM])
def test_hidden_states_are_those_of_stock(cls) -> None:
    model, inputs = model_of(cls), batch(LENGTHS)
    states = model(**inputs, output_hidden_states=True).hidden_states
    real = inputs["attention_mask"].bool()
    for mine, expected in zip(
        ek.convert(model)(**inputs, output_hidden_states=True).hidden_states, states, strict=True
    ):
        torch.testing.assert_close(mine[real], expected[real], **CLOSE)


def test_attention_weights_are_those_of_stock() -> None:
    model, inputs = tiny_model(cls=ModernBertModel), batch(LENGTHS)
    model.set_attn_implementation("eager")
    theirs = model(**inputs, output_attentions=True).attentions
    with pytest.warns(UserWarning, match="output_attentions=True computes attention a second time"):
        ours = ek.convert(model)(**inputs, output_attentions=True).attentions
    real = inputs["attention_mask"].bool()
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.transpose(1, 2)[real], expected.transpose(1, 2)[real], rtol=1e-4, atol=1e-5)


def test_padding_may_stand_in_front_but_not_between() -> None:
    model = model_of(ModernBertForTokenClassification)
    inputs = batch(LENGTHS)
    left = {
        name: torch.stack([row.roll(17 - n) for row, n in zip(t, LENGTHS, strict=True)]) for name, t in inputs.items()
    }
    real = left["attention_mask"].bool()
    expected = model(**left).logits[real]
    torch.testing.assert_close(ek.convert(model)(**left).logits[real], expected, **CLOSE)
    left["attention_mask"][2, 5] = 0
    with pytest.raises(ValueError, match="padding between its tokens"):
        model(**left)


def test_longer_sequences_than_the_config_names_are_taken_as_by_stock() -> None:
    model = model_of(max_position_embeddings=8)
    expected = model(**batch(LENGTHS)).logits
    torch.testing.assert_close(ek.convert(model)(**batch(LENGTHS)).logits, expected, **CLOSE)


@pytest.mark.parametrize("packed", [False, True])
def test_a_classifier_may_read_the_mean(packed) -> None:
    model = model_of(classifier_pooling="mean")
    inputs = {**batch(LENGTHS), "labels": torch.tensor([0, 2, 1, 1])}
    theirs, gradients = trained(model, **inputs)
    if packed:
        rows = [
            {"input_ids": ids[:n], "labels": label}
            for ids, n, label in zip(inputs["input_ids"], LENGTHS, inputs["labels"], strict=True)
        ]
        inputs = ek.PackedCollator()(rows)
    outputs, ours = trained(ek.convert(model), **inputs)
    torch.testing.assert_close(outputs.logits, theirs.logits, **CLOSE)
    torch.testing.assert_close(outputs.loss, theirs.loss, **CLOSE)
    assert_same(ours, gradients)


def test_gates_are_those_of_the_definition() -> None:
    """In front of stock layers they multiply activations: a neuron's is the product of its input and its gate."""
    stock = ek.enable_gates(model_of())
    set_gates(stock)
    fused = ek.convert(copy.deepcopy(stock))
    inputs = {**batch(LENGTHS), "labels": torch.tensor([0, 2, 1, 1])}
    theirs, gradients = trained(stock, **inputs)
    outputs, ours = trained(fused, **inputs)
    torch.testing.assert_close(outputs.logits, theirs.logits, **CLOSE)
    assert_same(ours, gradients)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_masked_is_compact_loss_by_loss(masks, gated) -> None:
    model = ek.convert(model_of(**PLAIN))
    if gated:
        set_gates(ek.enable_gates(model))
    ticket = some_ticket(model)
    compact = ek.convert(ek.compact(copy.deepcopy(ek.to_stock(model)), ticket))
    if masks:
        ek.reserve_masks(model)
    ek.apply_ticket(model, ticket)
    inputs = {**batch(LENGTHS), "labels": torch.tensor([0, 2, 1, 1])}
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (model, compact)] if not gated else []
    for _ in range(4 if optimizers else 1):
        losses = []
        for each in (model, compact):
            each.zero_grad()
            loss = each(**inputs).loss
            loss.backward()
            losses.append(loss.detach())
        torch.testing.assert_close(*losses, **CLOSE)
        for optimizer in optimizers:
            optimizer.step()
    for layer, heads, neurons in zip(model.model.layers, ticket.heads, ticket.neurons, strict=True):
        parts = layer.parts
        qkv = parts.query_key_value.weight.grad.view(3, parts.num_heads, -1)
        glu = parts.input_and_gate.weight.grad.view(2, parts.num_neurons, -1)
        assert qkv.any(-1).any(0).nonzero().flatten().tolist() == heads
        assert glu.any(-1).any(0).nonzero().flatten().tolist() == neurons


def test_a_compact_model_is_saved_trained_and_made_stock_again(tmp_path) -> None:
    model = model_of(**PLAIN)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    inputs = {**batch(LENGTHS), "labels": torch.tensor([0, 2, 1, 1])}
    model(**inputs).loss.backward()
    optimizer.step()
    ek.compact(model, some_ticket(model), optimizer)
    optimizer.step()  # with the state that was cut
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64)
    expected = model(**inputs).logits
    for same in (loaded, ek.convert(loaded), ek.to_stock(loaded)):
        torch.testing.assert_close(same(**inputs).logits, expected, **CLOSE)


@pytest.mark.parametrize("cls", [ModernBertModel, ModernBertForSequenceClassification])
def test_layers_that_do_not_agree_with_the_config_are_refused(cls) -> None:
    model = model_of(cls)
    base = model.base_model
    base.layers[1], base.layers[2] = base.layers[2], base.layers[1]
    ek.convert(copy.deepcopy(model))  # two of one type
    base.layers[2].attn.sliding_window = 7
    with pytest.raises(ValueError, match="layers.2 has {'window': 6, .* by the config {'window': 2"):
        ek.convert(model)


def test_checkpointed_layers_give_the_same_gradients() -> None:
    model = ek.convert(model_of()).train()
    inputs = {**batch(LENGTHS), "labels": torch.tensor([0, 2, 1, 1])}
    _, expected = trained(model, **inputs)
    model.gradient_checkpointing_enable()
    _, ours = trained(model, **inputs)
    assert_same(ours, expected)


def test_a_packed_batch_compiles_into_one_graph() -> None:
    torch._dynamo.reset()
    # Two layers: one attends to all tokens, the other to those that are near.
    model = ek.convert(tiny_model(cls=ModernBertForSequenceClassification, num_hidden_layers=2))
    rows = [{"input_ids": torch.arange(1, n + 1)} for n in LENGTHS]
    inputs = ek.PackedCollator()(rows)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("backend", ["triton", "cpu", "reference"])
def test_every_backend_trains_it(backend) -> None:
    if backend not in ek.ops.backends("attention"):
        pytest.skip(f"there is no backend {backend} here")
    stock = tiny_model(cls=ModernBertForSequenceClassification, **PLAIN)
    inputs = {**batch((3, 9)), "labels": torch.tensor([0, 2])}
    theirs, gradients = trained(copy.deepcopy(stock).double(), **inputs)
    with ek.use_backend(backend):
        outputs, ours = trained(ek.convert(stock), **inputs)
    torch.testing.assert_close(outputs.logits.double(), theirs.logits, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name].double(), gradient, msg=name, rtol=1e-3, atol=1e-5)


def test_autocast_is_as_close_as_that_of_stock() -> None:
    stock = tiny_model(cls=ModernBertForTokenClassification, **PLAIN)
    inputs = batch(LENGTHS)
    real = inputs["attention_mask"].bool()
    inputs["labels"] = torch.where(real, inputs["input_ids"] % 3, -100)
    exact = copy.deepcopy(stock).double()(**inputs, output_hidden_states=True).hidden_states[-1]
    fused = ek.convert(copy.deepcopy(stock))
    with torch.autocast("cpu", torch.bfloat16):
        states = [model(**inputs, output_hidden_states=True).hidden_states[-1] for model in (stock, fused)]
        trained(fused, **inputs)
    # Of most tokens: of one that a norm hardly finds anything in, both are far off, by chance one or the other more.
    theirs, ours = [(state.double() - exact)[real].square().mean(1).sqrt().median() for state in states]
    assert ours <= 1.4 * theirs


def test_dropout_drops_while_training_and_keeps_the_mean() -> None:
    model = ek.convert(tiny_model(cls=ModernBertForSequenceClassification, dropout=0.2))
    calm = model(**batch(LENGTHS)).logits
    torch.testing.assert_close(calm, model(**batch(LENGTHS)).logits)
    model.train()
    torch.manual_seed(0)
    first = model(**batch(LENGTHS)).logits
    assert not torch.allclose(first, model(**batch(LENGTHS)).logits)
    torch.manual_seed(0)
    torch.testing.assert_close(first, model(**batch(LENGTHS)).logits)


def test_dropout_as_by_the_config_is_found() -> None:
    config = ModernBertConfig(num_hidden_layers=2, attention_dropout=0.25, mlp_dropout=0.5)
    with torch.device("meta"):
        model = ek.convert(ModernBertModel(config))
    assert [layer.parts.attention_dropout_p for layer in model.layers] == [0.25, 0.25]
    assert [layer.parts.window for layer in model.layers] == [None, 64]
