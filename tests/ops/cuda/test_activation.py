"""The activation between the products of a feed-forward block, and its backward in one pass, against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earlybert_kernels.backends import cuda
from earlybert_kernels.reference.feed_forward import ACTIVATIONS
from tests.helpers.accuracy import assert_as_exact_as_pytorch
from tests.helpers.covering import every_pair
from tests.helpers.guarded import Guarded
from tests.helpers.targets import device_of

if cuda.unavailable() is not None:
    pytest.skip(cuda.unavailable(), allow_module_level=True)

DEVICE = device_of("cuda")
HALF = (torch.float16, torch.bfloat16)
#: Tokens and neurons. A block has 8 rows of 256 columns; rows of 16 bytes are gone through in vectors.
SHAPES = [(1, 1), (3, 8), (9, 264), (37, 1843), (70, 511), (33, 1024)]


def inputs(shape, dtype, gated):
    """The gradient of h, y and gates."""
    grad_h, y = (torch.randn(shape).to(DEVICE, dtype) for _ in range(2))
    return grad_h, y * 2, torch.randn(shape[1], device=DEVICE) if gated else None


def defined(grad_h, y, gates, activation, dtype):
    """h and the gradients of y, of a bias in it, and of the gates, by autograd in `dtype`."""
    y = y.to(dtype).requires_grad_()
    bias = y.new_zeros(y.shape[1], requires_grad=True)
    gates = None if gates is None else gates.to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    h = ACTIVATIONS[activation](y + bias)
    h = h if gates is None else (h * gates).to(dtype)
    return h, *torch.autograd.grad(h, [y, bias] if gates is None else [y, bias, gates], grad_h.to(dtype))


def run(grad_h, y, gates, activation):
    """The same by the kernels, forward's h and backward's."""
    h = cuda.activation.forward(y, gates, activation)
    grad_y, again, grad_bias, grad_gates = cuda.activation.backward(grad_h.clone(), y, gates, activation)
    return h, again, (h, grad_y, grad_bias, *([] if gates is None else [grad_gates]))


def check(grad_h, y, gates, activation):
    h, again, ours = run(grad_h, y, gates, activation)
    assert torch.equal(h, again)
    assert ours[1].dtype == ours[2].dtype == h.dtype == y.dtype
    plain, truth = (defined(grad_h, y, gates, activation, dtype) for dtype in (y.dtype, torch.float64))
    assert_as_exact_as_pytorch(ours, plain, truth, y.dtype)


@every_pair(shape=SHAPES, gated=[False, True], dtype=[torch.float32, *HALF])
def test_values_and_gradients(shape, gated, dtype):
    check(*inputs(shape, dtype, gated), "gelu")


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("activation", ["gelu_tanh", "relu"])
def test_other_activations(activation, dtype):
    for shape in ((5, 13), (9, 264)):
        check(*inputs(shape, dtype, True), activation)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    tokens=st.integers(1, 40),
    neurons=st.integers(1, 70) | st.sampled_from([255, 256, 257, 520]),
    gated=st.booleans(),
    dtype=st.sampled_from([torch.float32, *HALF]),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    shift=st.integers(0, 2),
)
def test_any_shape_wherever_it_lies(tokens, neurons, gated, dtype, activation, shift):
    """Each of the three matrices in turn off the vectors' boundaries."""
    tensors = list(inputs((tokens, neurons), dtype, gated))
    if shift < 2:
        tensors[shift] = torch.cat([tensors[shift].new_zeros(1), tensors[shift].flatten()])[1:].view(tokens, neurons)
    check(*tensors, activation)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=16),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
)
def test_any_finite_number(values, activation):
    """Huge and tiny ones: no overflow on the way, and far out the very value and slope."""
    y = torch.tensor([values], device=DEVICE)
    check(torch.ones_like(y), y, None, activation)
    h, _, (_, slope, _) = run(torch.ones_like(y), y, None, activation)
    far = y.abs() > 20
    assert torch.equal(h[far], y.clamp(min=0)[far])
    assert torch.equal(slope[far], (y > 0).float()[far])


def test_numbers_that_are_none_stay_so():
    y = torch.tensor([[float("nan"), 1.0]], device=DEVICE)
    for activation in ACTIVATIONS:
        h = cuda.activation.forward(y, None, activation)
        assert h[0, 0].isnan()
        assert h[0, 1].isfinite()


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("neurons", [264, 37])
def test_everything_is_written_and_nothing_else(neurons, gated, monkeypatch):
    grad_h, y, gates = inputs((9, neurons), torch.bfloat16, gated)
    grad_h = grad_h.clone()
    memory = Guarded(monkeypatch)
    cuda.activation.forward(y, gates, "gelu")
    memory.check(1)
    cuda.activation.backward(grad_h, y, gates, "gelu")
    memory.check(5)  # h twice, the gradients of bias and gates, and the partial sums


def test_no_tokens():
    y = torch.empty(0, 40, device=DEVICE, dtype=torch.bfloat16)
    assert cuda.activation.forward(y, None, "gelu").shape == (0, 40)
    *_, grad_bias, grad_gates = cuda.activation.backward(y, y, torch.ones(40, device=DEVICE), "gelu")
    assert not grad_bias.any()
    assert not grad_gates.any()


def test_no_neurons():
    y, gates = torch.empty(5, 0, device=DEVICE), torch.empty(0, device=DEVICE)
    assert cuda.activation.forward(y, gates, "gelu").shape == (5, 0)
    assert [t.numel() for t in cuda.activation.backward(y, y, gates, "gelu")] == [0, 0, 0, 0]


def test_repeated_runs_are_bitwise_equal():
    tensors = inputs((70, 511), torch.float32, True)
    (_, _, first), (_, _, second) = run(*tensors, "gelu"), run(*tensors, "gelu")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_partial_sums_stay_few():
    """However many the rows: a fixed number of blocks shares them, so that sums are the same on every GPU."""
    partials = cuda.extension.activation_partials
    assert partials(0, 3072) == 0
    assert partials(1, 3072) == partials(8, 3072) == 1
    assert partials(10**9, 3072) == 33
    assert partials(10**9, 1) == 396
    assert partials(10**9, 10**6) == 1


def test_a_call_without_an_activation_is_refused():
    y = torch.zeros(2, 3, device=DEVICE)
    with pytest.raises(RuntimeError, match=r"activation forward \(cuda\), rows 2, columns 3: there is no activation"):
        cuda.activation.forward(y, None, "none")
