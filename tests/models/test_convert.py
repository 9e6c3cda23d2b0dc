import copy
import pickle

import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertModel

import earlybert_kernels as ek
from earlybert_kernels.nn import post_norm_layer
from tests.helpers.tiny_bert import batch, tiny_config, tiny_model

SENTENCES = [
    "a gripping , well - acted film",
    "no",
    "the plot is thin , and the jokes fall flat long before the second half of this picture limps to its end",
    "watchable",
]


def relative_error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm().clamp_min(1e-12)).item()


def gradients(model, inputs):
    """Gradients by parameter name."""
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(model, inputs, tolerance=1e-4):
    theirs = gradients(model, inputs)
    ours = gradients(ek.convert(model), inputs)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        if name.endswith("key.bias"):  # its gradient is 0 but for rounding: softmax ignores what all scores share
            assert max(ours[name].norm(), gradient.norm()) < 1e-3 * theirs[name.replace("key", "query")].norm(), name
        else:
            assert relative_error(ours[name], gradient) < tolerance, name


@pytest.fixture(scope="module")
def real(minilm):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=2).eval()
    inputs = dict(AutoTokenizer.from_pretrained(minilm)(SENTENCES, padding=True, return_tensors="pt"))
    return model, {**inputs, "labels": torch.tensor([1, 0, 0, 1])}


def test_real_weights_same_logits_gradients_and_keys(real):
    model, inputs = copy.deepcopy(real[0]), real[1]
    stock = model(**inputs)
    keys = list(model.state_dict())
    parameters = {name: id(p) for name, p in model.named_parameters()}
    assert ek.convert(model) is model
    assert list(model.state_dict()) == keys
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    out = model(**inputs)
    torch.testing.assert_close(out.logits, stock.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.loss, stock.loss, rtol=0, atol=1e-5)
    assert_same_gradients(ek.restore(model), inputs)


def test_real_weights_restore_gives_back_the_same_modules(real):
    model, inputs = copy.deepcopy(real[0]), real[1]
    modules = {name: (id(m), type(m), m.training) for name, m in model.named_modules()}
    stock = model(**inputs).logits
    ek.restore(ek.convert(model))
    assert {name: (id(m), type(m), m.training) for name, m in model.named_modules()} == modules
    assert torch.equal(model(**inputs).logits, stock)
    assert "forward" not in vars(model) and "forward" not in vars(model.bert)
    assert not model._forward_pre_hooks


def test_odd_shapes_same_logits_and_gradients(shape):
    model = tiny_model(shape).double()
    inputs = {**batch(), "labels": torch.tensor([0, 2, 1, 1])}
    stock = model(**inputs).logits
    out = ek.convert(copy.deepcopy(model))(**inputs).logits
    torch.testing.assert_close(out, stock, rtol=1e-10, atol=1e-10)
    assert_same_gradients(model, inputs, tolerance=1e-9)


def test_converting_twice_and_restoring_twice_change_nothing():
    model = tiny_model()
    ek.convert(ek.convert(model))
    modules = dict(model.named_modules())
    ek.convert(model)
    assert dict(model.named_modules()) == modules
    assert not ek.is_converted(ek.restore(ek.restore(model)))


def test_base_model_alone_and_outputs():
    model = tiny_model(cls=BertModel)
    inputs = batch()
    real_tokens = inputs["attention_mask"].bool()
    stock = model(**inputs, output_hidden_states=True)
    ek.convert(model)
    out = model(**inputs, output_hidden_states=True)
    assert len(out.hidden_states) == len(stock.hidden_states)
    for ours, theirs in zip(out.hidden_states, stock.hidden_states, strict=True):
        torch.testing.assert_close(ours[real_tokens], theirs[real_tokens], rtol=1e-5, atol=1e-5)
        assert not ours[~real_tokens].any()
    torch.testing.assert_close(out.pooler_output, stock.pooler_output, rtol=1e-5, atol=1e-5)
    assert model(**inputs).hidden_states is None
    as_tuple = model(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[1], out.pooler_output)
    model.config.return_dict = False
    assert isinstance(model(**inputs), tuple)


def test_hidden_states_were_recorded_before_converting():
    """transformers leaves its recording hooks on the stock layers; they are no obstacle."""
    model = tiny_model()
    stock = model(**batch(), output_hidden_states=True)
    out = ek.convert(model)(**batch(), output_hidden_states=True)
    mask = batch()["attention_mask"].bool()
    for ours, theirs in zip(out.hidden_states, stock.hidden_states, strict=True):
        torch.testing.assert_close(ours[mask], theirs[mask], rtol=1e-5, atol=1e-5)
    again = ek.restore(model)(**batch(), output_hidden_states=True)
    torch.testing.assert_close(again.hidden_states[-1], stock.hidden_states[-1])


def test_classification_computes_only_the_first_token_in_the_last_layer():
    model = ek.convert(tiny_model())
    rows = []
    for layer in model.bert.encoder.layer:
        layer.register_forward_hook(lambda module, args, out: rows.append(out.shape[0]))
    model(**batch((5, 1, 9, 3)))
    assert rows == [18, 18, 4]
    rows.clear()
    model(**batch((5, 1, 9, 3)), output_hidden_states=True)
    assert rows == [18, 18, 18]


def test_padded_batch_equals_its_sequences_one_by_one(bert):
    model = ek.convert(bert)
    lengths = (5, 1, 9, 3)
    inputs = batch(lengths)
    together = model(**inputs).logits
    for row, length in enumerate(lengths):
        alone = model(**{name: t[row : row + 1, :length] for name, t in inputs.items()}).logits
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)


def test_mask_with_gaps_and_left_padding_keep_their_positions():
    model = tiny_model(cls=BertModel, add_cross_attention=False)
    model.pooler = None
    inputs = batch((6, 6, 6))
    inputs["attention_mask"] = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 0]])
    mask = inputs["attention_mask"].bool()
    stock = model(**inputs).last_hidden_state
    out = ek.convert(model)(**inputs).last_hidden_state
    torch.testing.assert_close(out[mask], stock[mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("extra", ["position_ids", "inputs_embeds", "no_mask", "no_types"])
def test_other_inputs(extra):
    model = tiny_model()
    inputs = batch()
    if extra == "position_ids":
        inputs["position_ids"] = torch.arange(9).flip(0).expand(4, 9)
    elif extra == "inputs_embeds":
        inputs["inputs_embeds"] = torch.randn(4, 9, 24)
        del inputs["input_ids"]
    elif extra == "no_mask":
        del inputs["attention_mask"]
    else:
        del inputs["token_type_ids"]
    stock = model(**inputs).logits
    torch.testing.assert_close(ek.convert(model)(**inputs).logits, stock, rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients_with_dropout(monkeypatch):
    model = ek.convert(tiny_model(dropout=0.2).train())
    inputs = {**batch(), "labels": torch.tensor([0, 2, 1, 1])}
    # This also hooks the word embeddings, which are then no longer fused and draw their dropout in another way.
    model.gradient_checkpointing_enable()
    for layer in model.bert.encoder.layer:
        layer.gradient_checkpointing = False
    torch.manual_seed(4)
    plain = gradients(model, inputs)
    calls = []
    for layer in model.bert.encoder.layer:
        layer.gradient_checkpointing = True
    own_weights = post_norm_layer.own_weights
    monkeypatch.setattr(post_norm_layer, "own_weights", lambda layer: calls.append(1) or own_weights(layer))
    torch.manual_seed(4)
    checkpointed = gradients(model, inputs)
    assert len(calls) == 6  # three layers, each run again in the backward pass
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-6, atol=1e-7)
    assert all(layer.gradient_checkpointing for layer in ek.restore(model).bert.encoder.layer)
    assert all(layer.gradient_checkpointing for layer in ek.convert(model).bert.encoder.layer)


def test_training_mode_follows_the_model_through_restore():
    model = ek.convert(tiny_model(dropout=0.5))
    model.train()
    assert not torch.equal(model(**batch()).logits, model(**batch()).logits)
    assert all(m.training for m in ek.restore(model).modules())
    ek.convert(model).eval()
    assert torch.equal(model(**batch()).logits, model(**batch()).logits)
    assert not any(m.training for m in ek.restore(model).modules())


def test_copies_and_pickles_of_a_converted_model_stand_alone():
    model = ek.convert(tiny_model())
    ek.enable_gates(model)
    logits = model(**batch()).logits
    twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    for twin in twins:
        assert torch.equal(twin(**batch()).logits, logits)
        torch.testing.assert_close(ek.restore(twin)(**batch()).logits, logits, rtol=1e-5, atol=1e-5)


def test_autocast_is_as_exact_as_stock_under_autocast(bert):
    exact = copy.deepcopy(bert).double()(**batch()).logits
    with torch.autocast("cpu", torch.bfloat16):
        stock = bert(**batch()).logits
        ours = ek.convert(bert)(**batch()).logits
    floor = torch.finfo(torch.bfloat16).eps * exact.abs().max()
    assert (ours - exact).abs().max() <= 2 * (stock - exact).abs().max() + floor


def test_trainer_still_finds_the_labels():
    """Trainer reads the signature of `model.forward` to know which columns to keep."""
    import inspect

    for cls in (transformers.BertForQuestionAnswering, transformers.BertForMaskedLM):
        model = tiny_model(cls=cls)
        stock = set(inspect.signature(model.forward).parameters)
        converted = set(inspect.signature(ek.convert(model).forward).parameters)
        assert {n for n in stock if "label" in n or "position" in n} <= converted


def test_refused_requests_say_what_to_do():
    model = ek.convert(tiny_model(cls=BertModel))
    with pytest.raises(ValueError, match="no encoder_hidden_states"):
        model(**batch(), encoder_hidden_states=torch.zeros(4, 9, 24))
    with pytest.raises(ValueError, match="no past_key_values"):
        model(**batch(), past_key_values=object())
    with pytest.raises(ValueError, match=r"takes the padding mask of the batch, \(4, 9\)"):
        model(**{**batch(), "attention_mask": torch.ones(4, 1, 9, 9)})
    with pytest.raises(ValueError, match="pad on the right"):
        ek.convert(tiny_model())(input_ids=torch.ones(1, 3).long(), attention_mask=torch.tensor([[0, 1, 1]]))
    with pytest.raises(ValueError, match="exactly one of"):
        model(attention_mask=torch.ones(1, 3))


def test_refused_models_are_named_and_left_alone():
    with pytest.raises(TypeError, match="no adapter for SqueezeBertModel.*BertModel"):
        ek.convert(transformers.SqueezeBertModel(transformers.SqueezeBertConfig(num_hidden_layers=1, vocab_size=9)))
    with pytest.raises(TypeError, match="no adapter for models of type 'squeezebert'"):
        ek.check_convertible(transformers.SqueezeBertConfig())
    for fields, message in (
        ({"is_decoder": True}, "decoder"),
        ({"hidden_act": "silu"}, "hidden_act='silu' cannot be converted"),
    ):
        with pytest.raises(ValueError, match=message):
            ek.check_convertible(tiny_config(**fields))
        with pytest.raises(ValueError, match=message):
            ek.convert(transformers.BertLMHeadModel(tiny_config(**fields)))
    model = tiny_model()
    dense = model.bert.encoder.layer[1].output.dense
    model.bert.encoder.layer[1].output.dense = torch.nn.Sequential(dense)
    with pytest.raises(TypeError, match=r"layer\.1\.output\.dense is a torch\..*\.Sequential, expected a plain torch"):
        ek.convert(model)
    assert not ek.is_converted(model)
    model = tiny_model()
    model.bert.encoder.layer[0].output.dropout = torch.nn.Identity()
    with pytest.raises(TypeError, match=r"layer\.0\.output\.dropout is a torch\..*\.Identity, expected a plain torch"):
        ek.convert(model)
    model = tiny_model()
    model.bert.encoder.layer[0].intermediate.intermediate_act_fn = torch.nn.SiLU()
    with pytest.raises(TypeError, match=r"intermediate_act_fn is a torch\..*\.SiLU"):
        ek.convert(model)

    class OwnForward(BertModel):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    with pytest.raises(TypeError, match="OwnForward has a forward of its own"):
        ek.convert(tiny_model(cls=OwnForward))
    model = tiny_model()
    model.bert.encoder.layer[2].intermediate.register_forward_hook(lambda *_: None)
    with pytest.raises(TypeError, match=r"encoder.layer.2.intermediate carries forward hooks"):
        ek.convert(model)
    pair = torch.nn.ModuleList([tiny_model(), tiny_model()])
    with pytest.raises(TypeError, match="holds 2 encoders"):
        ek.convert(pair)


def test_a_module_replaced_after_converting_is_noticed():
    model = ek.convert(tiny_model())
    query = model.bert.encoder.layer[1].attention.self.query
    model.bert.encoder.layer[1].attention.self.query = torch.nn.Linear(24, 24)
    with pytest.raises(TypeError, match=r"BertSelfAttention.query was replaced after the model was converted.*restore"):
        model(**batch())
    model.bert.encoder.layer[1].attention.self.query = query
    model(**batch())


def test_a_batch_on_another_device_is_refused():
    model = ek.convert(tiny_model())
    with pytest.raises(ValueError, match="batch is on meta and the model on cpu.*DistributedDataParallel"):
        model(input_ids=torch.zeros(1, 3, dtype=torch.long, device="meta"))


@pytest.mark.parametrize("kind", ["forward hook", "backward hook", "own forward", "replaced"])
def test_embeddings_that_do_more_than_stock_ones_still_do_it(kind):
    model = ek.convert(tiny_model().eval())
    embeddings, seen = model.bert.embeddings, []
    word = embeddings.word_embeddings
    if kind == "forward hook":
        word.register_forward_hook(lambda *_: seen.append(1))
    elif kind == "backward hook":
        embeddings.LayerNorm.register_full_backward_hook(lambda *_: seen.append(1))
    elif kind == "own forward":
        word.forward = lambda ids: seen.append(1) or torch.nn.functional.embedding(ids, word.weight)
    else:
        embeddings.dropout = torch.nn.Identity()
        embeddings.dropout.register_forward_hook(lambda *_: seen.append(1))
    model(**batch()).logits.sum().backward()
    assert seen


def test_int32_ids():
    model = ek.convert(tiny_model().eval())
    inputs = batch()
    narrow = {**inputs, "input_ids": inputs["input_ids"].int()}
    assert torch.equal(model(**narrow).logits, model(**inputs).logits)
