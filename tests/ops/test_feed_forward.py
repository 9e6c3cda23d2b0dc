import pytest
import torch

import earlybert_kernels as ek
from tests.helpers import oracles


def inputs(tokens=5, hidden=6, neurons=11, dtype=torch.float64):
    shapes = ((tokens, hidden), (neurons, hidden), (neurons,), (hidden, neurons), (hidden,))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize(("tokens", "hidden", "neurons"), [(1, 1, 1), (5, 6, 11), (64, 16, 1843)])
def test_output_and_gradients_match_the_definition(tokens, hidden, neurons):
    tensors = inputs(tokens, hidden, neurons)
    gates = torch.randn(neurons, dtype=torch.float64, requires_grad=True)
    out = ek.ops.feed_forward(*tensors, neuron_gates=gates)
    truth = oracles.feed_forward(*tensors, gates=gates)
    torch.testing.assert_close(out, truth, rtol=1e-11, atol=1e-11)
    pairs = zip(*(torch.autograd.grad(o.square().sum(), [*tensors, gates]) for o in (out, truth)), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kept", [[], [3], [0, 2, 5, 10]])
def test_masked_neurons_are_not_read_and_get_zero_gradients(kept):
    tensors = inputs()
    _, w_in, b_in, w_out, _ = tensors
    gates = torch.randn(11, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(11, dtype=torch.bool)
    mask[kept] = True
    out = ek.ops.feed_forward(*tensors, neuron_mask=mask, neuron_gates=gates)
    truth = oracles.feed_forward(*tensors, gates=gates * mask)
    torch.testing.assert_close(out, truth, rtol=1e-12, atol=1e-12)
    grads = torch.autograd.grad(out.square().sum(), [*tensors, gates])
    expected = torch.autograd.grad(truth.square().sum(), [*tensors, gates])
    for ours, theirs in zip(grads[:3], expected[:3], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    # The column of a pruned neuron in w_out would get a gradient from a multiplied mask, but not from a skipped one.
    torch.testing.assert_close(grads[3], expected[3] * mask, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(grads[5], expected[5] * mask, rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        w_in[~mask], b_in[~mask], w_out[:, ~mask] = float("nan"), float("nan"), float("nan")
    assert torch.equal(out, ek.ops.feed_forward(*tensors, neuron_mask=mask, neuron_gates=gates))


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
def test_gradcheck(activation):
    tensors = inputs(3, 4, 5)
    gates = torch.randn(5, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([True, False, True, True, False])
    for neuron_mask in (None, mask):
        assert torch.autograd.gradcheck(
            lambda *t, m=neuron_mask: ek.ops.feed_forward(
                *t[:5], neuron_mask=m, neuron_gates=t[5], activation=activation
            ),
            (*tensors, gates),
        )


def test_gelu_is_the_exact_one():
    x = torch.tensor([[2.0]], dtype=torch.float64)
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    out = ek.ops.feed_forward(x, one, zero, one, zero)
    assert abs(out.item() - 1.9544997361036416) < 1e-15  # 2 Phi(2); the tanh form gives 1.95459769


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_as_good_as_plain_pytorch(dtype):
    tensors = [t.detach().to(dtype) for t in inputs(64, 48, 200)]
    truth = oracles.feed_forward(*(t.double() for t in tensors))
    plain = oracles.feed_forward(*tensors)
    ours = ek.ops.feed_forward(*tensors)
    assert ours.dtype == dtype
    assert (ours - truth).abs().max() <= 2 * (plain - truth).abs().max() + torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"neuron_gates": torch.ones(11, dtype=torch.float16)}, TypeError, "gates must stay float32"),
        ({"neuron_mask": torch.ones(11)}, TypeError, "expected torch.bool"),
        ({"activation": "swish"}, ValueError, "unknown activation 'swish'; known: gelu, gelu_tanh, relu"),
        ({"w_out": torch.zeros(11, 6)}, ValueError, r"w_out has shape \(11, 6\), expected \(6, 11\)"),
        ({"x": torch.zeros(5, 7)}, ValueError, r"x has shape \(5, 7\)"),
        ({"backend": "triton"}, RuntimeError, "cannot run this call"),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    arguments = dict(zip(("x", "w_in", "b_in", "w_out", "b_out"), inputs(), strict=True)) | change
    with pytest.raises(error, match=message):
        ek.ops.feed_forward(**arguments)
