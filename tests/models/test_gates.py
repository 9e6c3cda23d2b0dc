import copy

import pytest
import torch
import transformers
from transformers import BertModel

import earlybert_kernels as ek
from tests.helpers.tiny_bert import batch, set_gates, some_ticket, tiny_model


def gated(shape="small", converted=True, dtype=torch.float64):
    model = tiny_model(shape).to(dtype)
    if converted:
        ek.convert(model)
    ek.enable_gates(model)
    return model


def test_gates_are_float32_ones_named_on_the_layers():
    model = ek.enable_gates(ek.convert(tiny_model()))
    for layer, heads, neurons in zip(
        model.bert.encoder.layer, ek.head_gates(model), ek.neuron_gates(model), strict=True
    ):
        assert layer.head_gates is heads and layer.neuron_gates is neurons
        assert heads.shape == (4,) and neurons.shape == (40,)
        assert heads.dtype == neurons.dtype == torch.float32
        assert (heads == 1).all() and (neurons == 1).all()
    names = dict(model.named_parameters())
    assert "bert.encoder.layer.0.head_gates" in names and "bert.encoder.layer.2.neuron_gates" in names
    logits = model(**batch()).logits
    torch.testing.assert_close(logits, tiny_model()(**batch()).logits, rtol=1e-5, atol=1e-5)


def test_enabling_twice_keeps_the_values():
    model = ek.enable_gates(tiny_model())
    set_gates(model)
    before = [g.clone() for g in ek.head_gates(model)]
    assert all(torch.equal(a, b) for a, b in zip(before, ek.head_gates(ek.enable_gates(model)), strict=True))


def test_folded_gates_equal_unfolded_gates(bert):
    inputs = {**batch(), "labels": torch.tensor([0, 2, 1, 1])}
    results = []
    for change in (copy.deepcopy, ek.convert):
        model = ek.enable_gates(change(bert.double()))
        set_gates(model)
        out = model(**inputs)
        out.loss.backward()
        results.append((out.logits, {n: p.grad for n, p in model.named_parameters()}))
    (unfolded, theirs), (folded, ours) = results
    torch.testing.assert_close(folded, unfolded, rtol=1e-10, atol=1e-10)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-8, atol=1e-10, msg=name)


def test_gate_gradient_is_the_derivative():
    model = gated()
    set_gates(model)
    inputs = {**batch(), "labels": torch.tensor([0, 2, 1, 1])}
    model(**inputs).loss.backward()
    for gates in (ek.head_gates(model)[1], ek.neuron_gates(model)[0]):
        step, base = 1e-6, gates.detach().clone()
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                gates.copy_(base)
                gates[2] += sign * step
                losses.append(model(**inputs).loss.item())
        with torch.no_grad():
            gates.copy_(base)
        assert gates.grad[2].item() == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-5)


def test_gates_move_along_when_converting_and_restoring():
    model = gated(converted=False)
    set_gates(model)
    gates = [id(g) for g in ek.head_gates(model) + ek.neuron_gates(model)]
    keys, logits = list(model.state_dict()), model(**batch()).logits
    for change in (ek.convert, ek.restore, ek.convert):
        change(model)
        assert [id(g) for g in ek.head_gates(model) + ek.neuron_gates(model)] == gates
        assert sorted(model.state_dict()) == sorted(keys)
        torch.testing.assert_close(model(**batch()).logits, logits, rtol=1e-10, atol=1e-10)


def test_a_copied_stock_model_reads_its_own_gates():
    model = gated(converted=False)
    twin = copy.deepcopy(model)
    set_gates(twin)
    torch.testing.assert_close(model(**batch()).logits, tiny_model().double()(**batch()).logits)
    assert not torch.allclose(model(**batch()).logits, twin(**batch()).logits)


@pytest.mark.parametrize("converted", [True, False])
def test_removing_gates_folds_them_in(converted):
    model = gated(converted=converted)
    set_gates(model)
    logits = model(**batch()).logits
    assert ek.remove_gates(model) is model
    torch.testing.assert_close(model(**batch()).logits, logits, rtol=1e-10, atol=1e-10)
    assert not [n for n in model.state_dict() if "gates" in n]
    with pytest.raises(ValueError, match="no gates: call earlybert_kernels.enable_gates"):
        ek.head_gates(model)
    ek.enable_gates(model)
    assert all((g == 1).all() for g in ek.head_gates(model))


@pytest.mark.parametrize("converted", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gates_are_refused(converted, dtype):
    model = gated(converted=converted, dtype=torch.float32).to(dtype)
    with pytest.raises(TypeError, match="lost in half precision"):
        model(**batch())
    model = tiny_model().to(dtype)
    gates = ek.head_gates(ek.enable_gates(model))
    assert all(g.dtype == torch.float32 for g in gates)


def test_a_step_of_the_papers_size_moves_a_gate_under_autocast():
    model = gated(dtype=torch.float32).train()
    gates = ek.head_gates(model) + ek.neuron_gates(model)
    optimizer = torch.optim.AdamW(gates, lr=2e-5, weight_decay=0)
    with torch.autocast("cpu", torch.bfloat16):
        model(**batch(), labels=torch.tensor([0, 2, 1, 1])).loss.backward()
    optimizer.step()
    moved = torch.cat([(g.detach() - 1).abs() for g in gates])
    assert moved.median() > 1e-5


@pytest.mark.parametrize("state", ["stock", "converted", "compact", "compact converted"])
@pytest.mark.parametrize("cls", ["BertForSequenceClassification", "BertForMaskedLM", "BertModel"])
def test_gates_are_saved_and_loaded_with_the_model(tmp_path, state, cls):
    model = tiny_model(cls=getattr(transformers, cls))
    if "compact" in state:
        ek.compact(model, some_ticket(model))
    if "converted" in state:
        ek.convert(model)
    set_gates(ek.enable_gates(model))
    before, config = model.state_dict(), copy.deepcopy(model.config)
    mask, name = batch()["attention_mask"].bool(), type(model).__name__
    output = model(**batch())[0]
    model.save_pretrained(tmp_path)
    assert type(model).__name__ == name and model.config.model_type == config.model_type
    auto = {"BertModel": "AutoModel"}.get(cls, cls.replace("Bert", "AutoModel", 1))
    for again in (getattr(transformers, auto).from_pretrained(tmp_path), copy.deepcopy(model)):
        after = again.state_dict()
        assert after.keys() == before.keys() and all(torch.equal(after[n], t) for n, t in before.items())
        for run in (again, ek.convert(again), ek.restore(again)):
            ours, theirs = run(**batch())[0], output
            if ours.shape[:2] == mask.shape:
                ours, theirs = ours[mask], theirs[mask]
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    again = getattr(transformers, auto).from_pretrained(tmp_path)
    half = getattr(transformers, auto).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert all(gates.dtype == torch.float32 for gates in ek.head_gates(half))
    ek.remove_gates(again).save_pretrained(tmp_path / "folded")
    folded = getattr(transformers, auto).from_pretrained(tmp_path / "folded")
    assert not any("gates" in n for n in folded.state_dict())
    ek.remove_gates(model)
    assert "save_pretrained" not in vars(model)


def test_gates_that_could_not_be_loaded_are_not_saved(tmp_path):
    class Custom(BertModel):
        pass

    model = ek.enable_gates(tiny_model(cls=Custom))
    with pytest.raises(TypeError, match=r"Custom has gates.*state_dict.*remove_gates"):
        model.save_pretrained(tmp_path / "saved")
    ek.remove_gates(model).save_pretrained(tmp_path / "saved")
    model = ek.enable_gates(tiny_model())
    model.bert.encoder.layer[1] = tiny_model().bert.encoder.layer[1]
    with pytest.raises(ValueError, match="layer 1 has no gates"):
        model.save_pretrained(tmp_path / "other")
