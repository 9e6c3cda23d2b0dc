"""Where nothing but the result counts, a CPU computes all layers by one call: with the same bits, and never stale."""

import copy

import pytest
import torch
from transformers import AlbertForSequenceClassification as Albert
from transformers import DistilBertForSequenceClassification as DistilBert
from transformers import RobertaForSequenceClassification as Roberta

import earlybert_kernels as ek
from earlybert_kernels.backends import cpu
from tests.helpers.tiny_bert import ODD, batch, packed, some_ticket, tiny_model

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=f"cpu: {cpu.unavailable()}")

LENGTHS = (5, 1, 9, 3)


@pytest.fixture
def calls(monkeypatch):
    """The calls for all layers at once."""
    noted, forward = [], cpu.encoder.forward

    def noting(*arguments, **options):
        noted.append(arguments)
        return forward(*arguments, **options)

    monkeypatch.setattr(cpu.encoder, "forward", noting)
    return noted


def assert_same_bits(model, inputs, calls, times=1):
    """Logits and hidden states with gradients and without, by so many calls for all layers."""
    results = []
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context():
            del calls[:]
            results.append((model(**inputs).logits, model.base_model(**inputs)[0]))
            assert len(calls) == (0 if context is torch.enable_grad else 2 * times)
    for theirs in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], theirs, strict=True))
    return results[1][0]


@pytest.mark.parametrize("make_batch", [batch, packed])
@pytest.mark.parametrize("shape", ODD)
def test_the_bits_are_those_of_layer_by_layer(shape, make_batch, calls):
    assert_same_bits(ek.convert(tiny_model(shape)).eval(), make_batch(LENGTHS), calls)


@pytest.mark.parametrize("cls", [Roberta, DistilBert, Albert])
def test_families(cls, calls):
    inputs = batch(LENGTHS)
    if cls is DistilBert:
        del inputs["token_type_ids"]
    elif cls is Roberta:
        inputs["token_type_ids"].zero_()
    assert_same_bits(ek.convert(tiny_model(cls=cls)).eval(), inputs, calls)


def test_compact_layers_of_different_widths(calls):
    model = tiny_model()
    assert_same_bits(ek.compact(ek.convert(model).eval(), some_ticket(model)), batch(LENGTHS), calls)


def test_a_converted_model_is_what_stock_is_in_float64(calls):
    """Of one token, of a few, and of as many as take products to the way of large batches."""
    stock = tiny_model(max_position_embeddings=130).eval()
    model = ek.convert(copy.deepcopy(stock))
    for lengths in ((1,), (7,), (64, 40), (128,)):
        inputs = batch(lengths)
        with torch.no_grad():
            ours, plain, truth = (m(**inputs).logits for m in (model, stock, copy.deepcopy(stock).double()))
        assert (ours - truth).abs().max() <= 2 * (plain - truth).abs().max() + 1e-6
    assert len(calls) == 4


def test_weights_are_read_in_every_call(calls):
    model, inputs = ek.convert(tiny_model()).eval(), batch(LENGTHS)
    other = tiny_model(initializer_range=0.1).state_dict()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weight = model.bert.encoder.layer[1].intermediate.dense.weight
    seen = [assert_same_bits(model, inputs, calls)]

    def step():
        model(**inputs, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        optimizer.step()

    def write_data():
        weight.data[0] += 1.0

    def replace_data():
        weight.data = weight.data * 2.0

    def write_memory():
        weight.detach().numpy()[:] *= 3.0

    def replace_parameter():
        model.bert.encoder.layer[0].output.dense.weight = torch.nn.Parameter(torch.randn(24, 40))

    changes = (step, write_data, replace_data, write_memory, replace_parameter, lambda: model.load_state_dict(other))
    for change in changes:
        change()
        seen.append(assert_same_bits(model, inputs, calls))
        assert not torch.equal(seen[-1], seen[-2])
    assert model.double()(**inputs).logits.dtype == torch.float64
    with torch.no_grad():
        assert model(**inputs).logits.dtype == torch.float64
    assert torch.equal(assert_same_bits(model.float(), inputs, calls), seen[-1])


def drop(model):
    model.bert.encoder.layer[2].output.dropout.p = 0.5
    model.train()


def turn_weight(model):
    weight = model.bert.encoder.layer[0].output.dense.weight
    weight.data = weight.data.t().contiguous().t()


@pytest.mark.parametrize(
    "prepare",
    [
        drop,
        turn_weight,
        ek.enable_gates,
        lambda model: ek.apply_ticket(model, some_ticket(model)),
        lambda model: model.bert.encoder.layer[1].register_forward_hook(lambda *_: None),
        lambda model: setattr(model.config, "output_hidden_states", True),
    ],
)
def test_what_has_to_be_layer_by_layer_is(prepare, calls):
    model = ek.convert(tiny_model()).eval()
    prepare(model)
    with torch.no_grad():
        model(**batch(LENGTHS))
    assert not calls


def test_weights_that_do_not_fit_are_not_read(calls):
    model = ek.convert(tiny_model()).eval()
    weight = model.bert.encoder.layer[1].output.dense.weight
    weight.data = weight.data[:-1]
    with torch.no_grad(), pytest.raises(ValueError, match="w_out has shape"):
        model(**batch(LENGTHS))
    assert not calls


def test_contexts_that_look_at_ops_or_change_them(calls):
    model, inputs = ek.convert(tiny_model()).eval(), batch(LENGTHS)
    with torch.no_grad():
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            model(**inputs)
        assert counter.get_total_flops() > 10_000
        with torch.autocast("cpu", torch.bfloat16):
            model(**inputs)
        with ek.use_backend("reference"):
            model(**inputs)
        assert not calls
        with ek.ops.record_backends() as ran:
            model(**inputs)
    assert len(calls) == 1 and ran["attention_sublayer"] == ran["feed_forward_sublayer"] == "cpu"
