import copy
import json

import pytest
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
)
from transformers.models.auto import modeling_auto

import earlybert_kernels as ek
from earlybert_kernels.backends import cuda
from tests.helpers.tiny_bert import batch, set_gates, some_ticket, tiny_model


def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("with_gates", [False, True])
def test_masked_equals_compact_equals_stock(bert, with_gates):
    model = ek.convert(bert)
    if with_gates:
        set_gates(ek.enable_gates(model))
    ticket = some_ticket(model)
    dense = model(**batch()).logits
    masked = ek.apply_ticket(model, ticket)(**batch()).logits
    stock = ek.to_stock(model)
    assert type(stock) is BertForSequenceClassification and not ek.is_converted(stock)
    close(stock(**batch()).logits, masked)
    close(ek.clear_ticket(copy.deepcopy(model))(**batch()).logits, dense)
    small = ek.compact(model, ticket)
    assert small is model
    close(small(**batch()).logits, masked)
    close(ek.restore(small)(**batch()).logits, masked)
    close(ek.to_stock(small)(**batch()).logits, masked)


def test_pruned_parameters_are_gone(bert):
    hidden, heads, neurons = bert.config.hidden_size, bert.config.num_attention_heads, bert.config.intermediate_size
    before = sum(p.numel() for p in bert.parameters())
    ticket = some_ticket(bert)
    ek.compact(bert, ticket)
    size = hidden // heads
    removed = sum(
        (heads - len(h)) * (4 * hidden * size + 3 * size) + (neurons - len(n)) * (2 * hidden + 1)
        for h, n in zip(ticket.heads, ticket.neurons, strict=True)
    )
    assert removed > 0
    assert sum(p.numel() for p in bert.parameters()) == before - removed


def test_masked_units_are_not_read_and_get_zero_gradients():
    model = ek.enable_gates(ek.convert(tiny_model()))
    ticket = some_ticket(model)
    ek.apply_ticket(model, ticket)
    logits = model(**batch()).logits
    logits.square().sum().backward()
    for layer, heads, neurons in zip(model.bert.encoder.layer, ticket.heads, ticket.neurons, strict=True):
        pruned_heads = [h for h in range(4) if h not in heads]
        pruned_neurons = [n for n in range(40) if n not in neurons]
        assert pruned_heads and pruned_neurons
        by_head = layer.attention.self.query.weight.grad.view(4, 6, 24)
        assert not by_head[pruned_heads].any() and all(by_head[h].any() for h in heads)
        assert not layer.intermediate.dense.weight.grad[pruned_neurons].any()
        assert not layer.output.dense.weight.grad[:, pruned_neurons].any()
        assert not layer.neuron_gates.grad[pruned_neurons].any() and not layer.head_gates.grad[pruned_heads].any()
        with torch.no_grad():
            layer.attention.self.value.weight.view(4, 6, 24)[pruned_heads] = float("nan")
            layer.intermediate.dense.bias[pruned_neurons] = float("nan")
            layer.output.dense.weight[:, pruned_neurons] = float("nan")
    assert torch.equal(model(**batch()).logits, logits)


def test_to_stock_puts_units_back_where_they_were():
    model = tiny_model()
    original = copy.deepcopy(model)
    ticket = some_ticket(model)
    stock = ek.to_stock(ek.compact(model, ticket))
    for ours, theirs, heads, neurons in zip(
        stock.bert.encoder.layer, original.bert.encoder.layer, ticket.heads, ticket.neurons, strict=True
    ):
        rows = torch.zeros(4, dtype=torch.bool).scatter(0, torch.tensor(heads), True).repeat_interleave(6)
        kept = torch.zeros(40, dtype=torch.bool).scatter(0, torch.tensor(neurons), True)
        assert torch.equal(ours.attention.self.key.weight, theirs.attention.self.key.weight * rows[:, None])
        assert torch.equal(ours.attention.output.dense.weight, theirs.attention.output.dense.weight * rows)
        assert torch.equal(ours.intermediate.dense.bias, theirs.intermediate.dense.bias * kept)
        assert torch.equal(ours.output.dense.weight, theirs.output.dense.weight * kept)
    assert stock.config.model_type == "bert" and type(stock.config) is transformers.BertConfig


@pytest.mark.parametrize(
    ("auto", "cls"),
    [
        ("AutoModel", "BertModel"),
        ("AutoModelForPreTraining", "BertForPreTraining"),
        ("AutoModelForCausalLM", "BertLMHeadModel"),
        ("AutoModelForMaskedLM", "BertForMaskedLM"),
        ("AutoModelForNextSentencePrediction", "BertForNextSentencePrediction"),
        ("AutoModelForSequenceClassification", "BertForSequenceClassification"),
        ("AutoModelForMultipleChoice", "BertForMultipleChoice"),
        ("AutoModelForTokenClassification", "BertForTokenClassification"),
        ("AutoModelForQuestionAnswering", "BertForQuestionAnswering"),
    ],
)
@pytest.mark.parametrize("converted", [True, False])
def test_saved_compact_model_reloads(tmp_path, auto, cls, converted):
    model = tiny_model(cls=getattr(transformers, cls), num_labels=2)
    if converted:
        ek.convert(model)
    ticket = some_ticket(model)
    ek.compact(model, ticket)
    inputs = batch()
    if cls == "BertForMultipleChoice":
        inputs = {n: t.view(2, 2, -1) for n, t in inputs.items()}
    first = model(**inputs)[0]
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "compact_bert" and config["architectures"] == [f"Compact{cls}"]
    again = getattr(transformers, auto).from_pretrained(tmp_path).eval()
    assert type(again) is type(model) and isinstance(again, getattr(transformers, cls))
    mask = inputs["attention_mask"].bool()
    outputs = [first, again(**inputs)[0], ek.convert(again)(**inputs)[0]]
    if outputs[0].shape[:2] == mask.shape:
        outputs = [o[mask] for o in outputs]
    close(outputs[1], outputs[0])
    close(outputs[2], outputs[0])
    widths = [layer.intermediate.dense.out_features for layer in again.base_model.encoder.layer]
    assert widths == [len(n) for n in ticket.neurons] and len(set(widths)) == 3
    if hasattr(model, "cls") and hasattr(model.cls, "predictions"):  # the decoder stays tied to the embeddings
        assert again.get_output_embeddings().weight is again.get_input_embeddings().weight


def test_a_reloaded_model_equals_the_saved(tmp_path, bert):
    ticket = some_ticket(bert)
    model = ek.compact(ek.convert(bert), ticket)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    saved, loaded = model.state_dict(), again.state_dict()
    assert saved.keys() == loaded.keys() and all(torch.equal(saved[k], loaded[k]) for k in saved)
    close(again(**batch()).logits, model(**batch()).logits)
    assert AutoConfig.from_pretrained(tmp_path).ticket == ticket
    base = AutoModel.from_pretrained(tmp_path)
    assert isinstance(base, BertModel) and torch.equal(base.pooler.dense.weight, model.bert.pooler.dense.weight)


def test_compacting_twice_composes(tmp_path):
    model = tiny_model()
    first = ek.Ticket([[0, 2, 3]] * 3, [list(range(1, 40, 2))] * 3)
    second = ek.Ticket([[1, 2]] * 3, [[0, 3, 19]] * 3)
    ek.compact(ek.compact(model, first), second)
    assert model.config.ticket == ek.Ticket([[2, 3]] * 3, [[1, 7, 39]] * 3)
    close(ek.to_stock(model)(**batch()).logits, model(**batch()).logits)
    model.save_pretrained(tmp_path)
    close(AutoModelForSequenceClassification.from_pretrained(tmp_path)(**batch()).logits, model(**batch()).logits)


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.AdamW,
        ek.AdamW,
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: ek.Lamb(p, lr=1e-3, adapt=False),  # the norm of a tensor changes when it is cut
    ],
)
def test_optimizer_state_goes_on_as_if_masked(make):
    """Masked training leaves the kept units where compact training, with the same optimizer state, takes them."""
    inputs = {**batch(), "labels": torch.tensor([0, 2, 1, 1])}
    models = [ek.convert(tiny_model().double()) for _ in range(2)]
    ticket = some_ticket(models[0])
    results = []
    for model, physically in zip(models, (False, True), strict=True):
        optimizer = make(model.parameters())
        optimizer.param_groups[0]["weight_decay"] = 0.0
        ek.apply_ticket(model, ticket)
        for step in range(6):
            if physically and step == 3:
                ek.compact(model, ticket, optimizer)
                assert {p for g in optimizer.param_groups for p in g["params"]} == set(model.parameters())
                assert set(optimizer.state) <= set(model.parameters())
                assert all(
                    s.shape == p.shape
                    for p, state in optimizer.state.items()
                    for n, s in state.items()
                    if torch.is_tensor(s) and n != "step"
                )
            optimizer.zero_grad()
            model(**inputs).loss.backward()
            optimizer.step()
        results.append(model(**inputs).logits)
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(cuda.unavailable() is not None, reason=f"cuda: {cuda.unavailable()}")
def test_all_layers_and_the_optimizers_state_are_cut_in_one_call_of_a_kernel(monkeypatch):
    calls, device = [], "cuda" if torch.cuda.is_available() else "cpu"
    gather = cuda.gather_units.gather
    monkeypatch.setattr(
        cuda.gather_units, "gather", lambda tensors, *rest: calls.append(len(tensors)) or gather(tensors, *rest)
    )
    results = []
    for backend in ("reference", "cuda"):
        model = tiny_model().to(device)
        optimizer = torch.optim.AdamW(model.parameters())
        inputs = {name: value.to(device) for name, value in batch().items()}
        model(**inputs, labels=torch.tensor([0, 2, 1, 1], device=device)).loss.backward()
        optimizer.step()
        with ek.use_backend(backend):
            ek.compact(model, some_ticket(model), optimizer)
        parameters = list(model.parameters())
        moments = [optimizer.state[p][name] for p in parameters for name in ("exp_avg", "exp_avg_sq")]
        results.append([*parameters, *(p.grad for p in parameters), *moments])
    assert calls == [3 * 10 * 4]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_compact_takes_the_gates_from_the_optimizer():
    model = ek.enable_gates(ek.convert(tiny_model()))
    gates = ek.head_gates(model) + ek.neuron_gates(model)
    rest = [p for p in model.parameters() if all(p is not g for g in gates)]
    optimizer = torch.optim.AdamW([{"params": rest}, {"params": gates, "lr": 0.1}])
    model(**batch(), labels=torch.tensor([0, 2, 1, 1])).loss.backward()
    optimizer.step()
    logits = ek.apply_ticket(model, some_ticket(model))(**batch()).logits
    ek.compact(model, some_ticket(tiny_model()), optimizer)
    close(model(**batch()).logits, logits)
    assert optimizer.param_groups[1]["params"] == []
    optimizer.zero_grad()
    model(**batch(), labels=torch.tensor([0, 2, 1, 1])).loss.backward()
    before = model.bert.encoder.layer[0].output.dense.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, model.bert.encoder.layer[0].output.dense.weight)


def test_optimizer_state_that_cannot_be_cut_is_refused():
    model = tiny_model()
    optimizer = torch.optim.Adafactor(model.parameters())
    model(**batch(), labels=torch.tensor([0, 2, 1, 1])).loss.backward()
    optimizer.step()
    with pytest.raises(TypeError, match="Adafactor keeps 'row_var' of shape"):
        ek.compact(model, some_ticket(model), optimizer)
    assert type(model) is BertForSequenceClassification


def test_compact_stock_layers_still_record_hidden_states(tmp_path):
    model = tiny_model()
    ticket = some_ticket(model)
    recorded = ek.convert(ek.compact(model, ticket))(**batch(), output_hidden_states=True).hidden_states
    mask = batch()["attention_mask"].bool()
    model.save_pretrained(tmp_path)
    for again in (ek.restore(model), AutoModelForSequenceClassification.from_pretrained(tmp_path)):
        hidden_states = again(**batch(), output_hidden_states=True).hidden_states
        assert len(hidden_states) == 4
        for ours, theirs in zip(hidden_states, recorded, strict=True):
            close(ours[mask], theirs[mask])


def test_gradients_and_frozen_parameters_survive_the_cut():
    model = tiny_model()
    model.bert.encoder.layer[0].output.dense.weight.requires_grad_(False)
    model(**batch(), labels=torch.tensor([0, 2, 1, 1])).loss.backward()
    ticket = some_ticket(model)
    gradient = model.bert.encoder.layer[1].output.dense.weight.grad[:, ticket.neurons[1]].clone()
    ek.compact(model, ticket)
    assert torch.equal(model.bert.encoder.layer[1].output.dense.weight.grad, gradient)
    assert not model.bert.encoder.layer[0].output.dense.weight.requires_grad


def test_refusals_come_before_any_change():
    model = ek.convert(tiny_model())
    state = {n: t.clone() for n, t in model.state_dict().items()}
    other = ek.Ticket([[0]] * 2, [[0]] * 2)
    wide = ek.Ticket([[0]] * 3, [[0, 40]] * 3)
    empty = ek.Ticket([[0], [], [1]], [[0]] * 3)
    for change in (ek.apply_ticket, ek.compact):
        with pytest.raises(ValueError, match="has 2 layers, the model 3"):
            change(model, other)
        with pytest.raises(ValueError, match="unit 40 of the neurons of layer 0, but the model has only 40"):
            change(model, wide)
        with pytest.raises(ValueError, match="keeps no heads in layer 1"):
            change(model, empty)
    with pytest.raises(ValueError, match="optimizer holds none"):
        ek.compact(model, some_ticket(model), torch.optim.SGD(tiny_model().parameters(), lr=0.1))
    after = model.state_dict()
    assert all(torch.equal(after[n], t) for n, t in state.items()) and type(model) is BertForSequenceClassification
    with pytest.raises(ValueError, match="convert"):
        ek.apply_ticket(tiny_model(), some_ticket(model))
    no_heads = ek.Ticket([range(4)] * 3, some_ticket(model).neurons)
    for ticket in (some_ticket(model), no_heads):
        with pytest.raises(ValueError, match="call clear_ticket or compact first"):
            ek.restore(ek.apply_ticket(model, ticket))

    class Custom(BertForSequenceClassification):
        pass

    with pytest.raises(TypeError, match="Custom has no compact class"):
        ek.compact(tiny_model(cls=Custom), some_ticket(model))


def test_transformers_knows_compact_classes_by_name():
    """A Trainer that smooths labels finds out by name whether to shift them, and pipelines what they take."""
    tables = {
        name: table
        for name, table in vars(modeling_auto).items()
        if name.startswith("MODEL_") and name.endswith("MAPPING_NAMES") and "bert" in table
    }
    assert {"MODEL_MAPPING_NAMES", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"} <= tables.keys()
    for name, table in tables.items():
        assert table.get("compact_bert") == "Compact" + table["bert"], name
    auto = transformers.AutoModelForCausalLM
    small = ek.compact(model := tiny_model(cls=BertLMHeadModel), some_ticket(model))
    assert type(auto.from_config(small.config)) is type(small)
    assert type(small).__name__ in tables["MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"].values()


@pytest.mark.parametrize("gated", [False, True])
def test_only_gates_that_are_there_stay_in_float32(gated):
    model = tiny_model()
    config = ek.compact(model, some_ticket(model)).config
    config.gated = gated
    kept = type(model)(config)._keep_in_fp32_modules_strict
    assert kept == ({"head_gates", "neuron_gates"} if gated else set())


def test_a_saved_compact_model_says_how_it_is_loaded(tmp_path):
    model = tiny_model()
    ek.compact(model, some_ticket(model))
    model.save_pretrained(tmp_path)
    readme = tmp_path / "README.md"
    assert "import earlybert_kernels" in readme.read_text()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1
    readme.write_text("mine")
    model.save_pretrained(tmp_path)
    assert readme.read_text() == "mine"


def test_an_optimizer_that_keeps_a_list_of_its_parameters_is_refused():
    model = ek.convert(tiny_model())
    keys = {name: p.shape for name, p in model.named_parameters()}
    with pytest.raises(TypeError, match="LBFGS keeps a list.*build a new optimizer after compact"):
        ek.compact(model, some_ticket(model), torch.optim.LBFGS(model.parameters()))
    assert {name: p.shape for name, p in model.named_parameters()} == keys


def test_to_stock_keeps_random_numbers_frozen_parameters_and_dtypes():
    model = ek.compact(ek.convert(tiny_model(cls=transformers.BertForMaskedLM)), some_ticket(tiny_model()))
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[0].bfloat16()
    state = torch.get_rng_state()
    stock = ek.to_stock(model)
    assert torch.equal(torch.get_rng_state(), state)
    ours = dict(model.named_parameters())
    for name, parameter in stock.named_parameters():
        assert (parameter.dtype, parameter.requires_grad) == (ours[name].dtype, ours[name].requires_grad), name
    assert {p.dtype for p in stock.parameters()} == {torch.float32, torch.bfloat16}
    assert stock.cls.predictions.decoder.weight is stock.bert.embeddings.word_embeddings.weight
