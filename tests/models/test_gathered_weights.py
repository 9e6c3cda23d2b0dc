"""Masked models whose active weights are gathered once for all layers."""

import copy

import pytest
import torch

import earlybert_kernels as ek
from earlybert_kernels import ops
from earlybert_kernels.backends import cuda
from earlybert_kernels.nn import Packing, encoder, gathered_weights, post_norm_layer
from tests.helpers.accuracy import assert_as_exact_as_pytorch
from tests.helpers.targets import device_of, targets_of
from tests.helpers.tiny_bert import batch, packed, set_gates, some_ticket, tiny_model

NEEDS_CUDA = pytest.mark.skipif(cuda.unavailable() is not None, reason=f"cuda: {cuda.unavailable()}")
TARGETS = pytest.mark.parametrize("target", targets_of("gather_units"), ids=lambda target: target.backend)


def on(device, inputs):
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in inputs.items()}


def results(model, inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def calls(monkeypatch):
    """Makes every forward pass begin with gathering, by a backend; a list says how many tensors each time."""
    made = []

    def begin(backend):
        def gather(tensors, *arguments, **options):
            if not torch.compiler.is_compiling():
                made.append(len(tensors))
            return op(tensors, *arguments, **options, backend=backend)

        op = ops.gather_units
        monkeypatch.setattr(encoder, "gathers", lambda layers, x: True)
        monkeypatch.setattr(ops, "gather_units", gather)
        return made

    return begin


@TARGETS
@pytest.mark.parametrize("gated", [False, True])
def test_they_train_as_the_layers_own_do(target, gated, calls):
    model = ek.convert(tiny_model().to(target.device))
    if gated:
        set_gates(ek.enable_gates(model))
    ticket = some_ticket(model)
    ticket = ek.Ticket([range(4), *ticket.heads[1:]], ticket.neurons)  # a layer that drops no heads
    ek.apply_ticket(model, ticket).bert.encoder.layer[1].output.dense.weight.requires_grad_(False)
    inputs = on(target.device, {**batch(), "labels": torch.tensor([0, 2, 1, 1])})
    expected_loss, expected = results(model, inputs)
    made = calls(target.backend)
    loss, gradients = results(model, inputs)
    # Without gates nothing is done to what the first layer's heads read and write.
    assert made == [3 * 10 - (6 if gated else 7)]
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@TARGETS
def test_under_autocast(target, calls):
    model = ek.apply_ticket(ek.convert(tiny_model().to(target.device)), some_ticket(tiny_model()))
    inputs = on(target.device, {**batch(), "labels": torch.tensor([0, 2, 1, 1])})
    expected_loss, expected = results(model, inputs)
    calls(target.backend)
    with torch.autocast(target.device, torch.bfloat16):
        loss, gradients = results(model, inputs)
    torch.testing.assert_close(loss, expected_loss, rtol=0.1, atol=0.1)
    assert all(gradients[name].dtype == torch.float32 for name in expected)


def test_they_compile_into_one_graph(calls):
    model = tiny_model(num_hidden_layers=2, problem_type="single_label_classification")
    set_gates(ek.enable_gates(ek.convert(model)))
    ek.apply_ticket(model, some_ticket(model))
    calls("reference")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for number, lengths in enumerate(((5, 1, 9, 3), (7, 2, 4))):
        inputs = {**packed(lengths), "labels": torch.arange(len(lengths)) % 3}
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            loss, gradients = results(compiled, inputs)
        expected_loss, expected = results(model, inputs)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
        for ours, gradient in zip(gradients.values(), expected.values(), strict=True):
            torch.testing.assert_close(ours, gradient, rtol=1e-4, atol=1e-5)


@NEEDS_CUDA
def test_layers_on_the_cuda_backend_gather_once(monkeypatch):
    device, shape = device_of("cuda"), {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 40}
    model = ek.enable_gates(ek.convert(tiny_model(**shape).to(device, torch.bfloat16)))
    set_gates(model)
    ek.apply_ticket(model, some_ticket(model))
    packing = Packing.from_offsets(torch.tensor([0, 5, 6, 9], dtype=torch.int32, device=device), 5, 9)
    x = torch.randn(9, 64).to(device, torch.bfloat16)
    gather, calls = cuda.gather_units.gather, []
    monkeypatch.setattr(
        cuda.gather_units, "gather", lambda tensors, *rest: calls.append(len(tensors)) or gather(tensors, *rest)
    )

    def run(stack, dtype=torch.bfloat16):
        leaves = [x.to(dtype).requires_grad_(), *stack.parameters()]
        out = stack(leaves[0], packing)
        return [t.cpu() for t in (out, *torch.autograd.grad(out, leaves, torch.ones_like(out)))]

    exact = run(copy.deepcopy(model.bert.encoder).double(), torch.float64)
    with ek.use_backend("cuda"):
        ours = run(model.bert.encoder)
        assert calls == [30]
        monkeypatch.setattr(encoder, "gathers", lambda layers, x: False)
        own = run(model.bert.encoder)
    assert len(calls) > 7  # every sublayer for itself, forward and backward
    assert_as_exact_as_pytorch(ours, own, exact, torch.bfloat16)


def test_when_they_are_gathered(monkeypatch):
    model = ek.enable_gates(ek.convert(tiny_model()))
    layers, x, ticket = model.bert.encoder.layer, torch.randn(3, 24), some_ticket(model)
    ek.apply_ticket(model, ticket)
    assert not gathered_weights.gathers(layers, x)  # the CPU's sublayers choose units as they compute
    monkeypatch.setattr(post_norm_layer, "gathers_units", lambda op, *tensors, size: True)
    assert gathered_weights.gathers(layers, x)
    assert not gathered_weights.gathers(ek.clear_ticket(copy.deepcopy(model)).bert.encoder.layer, x)
    assert not gathered_weights.gathers(ek.reserve_masks(copy.deepcopy(model)).bert.encoder.layer, x)
    for layer in layers:
        layer.gradient_checkpointing = True
    assert gathered_weights.gathers(layers, x)  # in evaluation nothing is kept
    assert not gathered_weights.gathers(model.train().bert.encoder.layer, x)
