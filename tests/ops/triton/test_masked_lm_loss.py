import pytest
import torch

from earlybert_kernels import reference
from earlybert_kernels.backends import triton
from tests.helpers.accuracy import assert_as_exact_as_pytorch
from tests.helpers.guarded import Guarded

if triton.unavailable() is not None:
    pytest.skip(f"triton: {triton.unavailable()}", allow_module_level=True)

from earlybert_kernels.backends.triton import masked_lm_loss as op

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
SHAPES = [(2, 1, 1), (7, 3, 11), (9, 43, 97), (5, 384, 64), (3, 768, 1000), (4, 32, 9001)]


def inputs(tokens, size, vocabulary, dtype=F32, bias_dtype=None):
    """hidden, labels, weight and bias; two of three rows are labelled."""
    hidden, weight, bias = (torch.randn(s) for s in ((tokens, size), (vocabulary, size), (vocabulary,)))
    hidden = hidden / size**0.5
    labels = torch.randint(0, vocabulary, (tokens,), device=DEVICE)
    labels[::3] = -100
    return hidden.to(DEVICE, dtype), labels, weight.to(DEVICE, dtype), bias.to(DEVICE, bias_dtype or dtype)


def rows_of(labels, capacity=None):
    rows = (labels != -100).nonzero().squeeze(1)
    return rows if capacity is None else torch.nn.functional.pad(rows, (0, capacity - len(rows)), value=-1)


def computed(hidden, labels, weight, bias, rows=None, grad_loss=3.0):
    """The loss and the gradients of hidden, weight and bias, by the kernels."""
    rows = rows_of(labels) if rows is None else rows
    loss, grad_logits = op.forward(hidden, labels, rows, weight, bias, False)
    grad_loss = torch.tensor(grad_loss, device=DEVICE)
    return loss, *op.backward(grad_loss, grad_logits, hidden, rows, weight, False)


def defined(hidden, labels, weight, bias, double, grad_loss=3.0):
    """The same by the reference, in float64 or in the tensors' own dtypes."""
    leaves = [(t.double() if double else t.clone()).requires_grad_() for t in (hidden, weight, bias)]
    loss = reference.masked_lm_loss(leaves[0], labels, leaves[1], leaves[2].to(leaves[1].dtype))
    return loss, *torch.autograd.grad(loss * grad_loss, leaves)


def check(tensors, rows=None, grad_loss=3.0):
    ours = computed(*tensors, rows, grad_loss)
    plain, truth = (defined(*tensors, double, grad_loss) for double in (False, True))
    dtype = tensors[0].dtype
    assert [t.dtype for t in ours] == [F32, dtype, dtype, dtype]
    for a, b, exact in zip(ours, plain, truth, strict=True):
        assert a.shape == exact.shape
        assert_as_exact_as_pytorch([a], [b], [exact], dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradients(shape):
    check(inputs(*shape))


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("bias_dtype", [None, F32], ids=str)
def test_half_precision(dtype, bias_dtype):
    for shape in ((7, 3, 11), (21, 43, 997), (4, 384, 2500)):
        check(inputs(*shape, dtype, bias_dtype))


def test_float16_gradients_do_not_vanish_in_a_large_mean():
    """A probability of 1e-5 is a hundred and more of float16's smallest steps, and less than two after a mean of 99."""
    hidden = torch.ones(99, 1, dtype=F16, device=DEVICE)
    weight = torch.tensor([[0.0], [11.5]], dtype=F16, device=DEVICE)
    tensors = hidden, torch.ones(99, dtype=torch.int64, device=DEVICE), weight, torch.zeros_like(weight[:, 0])
    ours, truth = computed(*tensors, grad_loss=65536.0), defined(*tensors, True, 65536.0)
    for a, exact in zip(ours[1:], truth[1:], strict=True):
        torch.testing.assert_close(a.double(), exact, rtol=1e-2, atol=0)


def test_without_a_bias():
    hidden, labels, weight, bias = inputs(7, 5, 70)
    ours = computed(hidden, labels, weight, None)
    for a, b in zip(ours, computed(hidden, labels, weight, torch.zeros_like(bias)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_a_capacity_with_an_unused_tail(dtype):
    tensors = inputs(12, 20, 77, dtype)
    labels = tensors[1]
    check(tensors, rows_of(labels, 12))
    check(tensors, rows_of(labels, 30))
    # The unused may lie anywhere, and rows in any order.
    check(tensors, rows_of(labels, 15)[torch.randperm(15, device=DEVICE)])


@pytest.mark.parametrize("capacity", [0, 1, 5])
def test_no_labelled_row_gives_zero_and_zero_gradients(capacity):
    hidden, labels, weight, bias = inputs(6, 8, 13)
    hidden[:] = float("nan")  # no row is read
    labels.fill_(-100)
    loss, *grads = computed(hidden, labels, weight, bias, rows_of(labels, capacity))
    assert loss == 0
    assert [g.shape for g in grads] == [hidden.shape, weight.shape, bias.shape]
    assert not any(g.any() for g in grads)


def test_unlabelled_rows_are_not_read():
    hidden, labels, weight, bias = inputs(7, 8, 13)
    truth = computed(hidden, labels, weight, bias)
    hidden[labels == -100] = float("nan")
    hidden = torch.nn.functional.pad(hidden, (0, 0, 1, 0), value=float("nan"))[1:]  # nor what lies at -1
    for rows in (rows_of(labels), rows_of(labels, 9)):
        for a, b in zip(computed(hidden, labels, weight, bias, rows), truth, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("label", [13, -1, 64, 1 << 40, -(1 << 50)])
def test_a_label_outside_the_vocabulary_gives_nan_and_reads_nothing(label):
    hidden, labels, weight, bias = inputs(7, 8, 13)
    good = computed(hidden, labels, weight, bias)[1]
    labels[1] = label
    rows = rows_of(labels, 7)
    loss, grad_hidden, grad_weight, grad_bias = computed(hidden, labels, weight, bias, rows)
    assert loss.isnan() and grad_weight.isnan().all() and grad_bias.isnan().all()
    assert torch.equal(grad_hidden.isnan().all(1), torch.arange(7, device=DEVICE) == 1)
    others = torch.arange(7, device=DEVICE) != 1
    assert torch.equal(grad_hidden[others], good[others])


def test_extreme_logits():
    weight = torch.eye(5, device=DEVICE)
    hidden = torch.tensor([[1e4, 0, 0, 0, -1e4], [0.0, 0, 0, 0, 0], [float("nan"), 0, 0, 0, 0]], device=DEVICE)
    labels = torch.tensor([4, 2, 0], device=DEVICE)
    loss = computed(hidden, labels, weight, None, torch.tensor([0, 1], device=DEVICE))[0]
    torch.testing.assert_close(loss.cpu(), (torch.tensor(2e4) + torch.tensor(5.0).log()) / 2)
    assert computed(hidden, labels, weight, None, torch.tensor([1, 2], device=DEVICE))[0].isnan()
    # Whole blocks of the vocabulary may be shut off.
    bias = torch.zeros(9001, device=DEVICE)
    bias[:8999] = -float("inf")
    hidden, weight = torch.zeros(1, 2, device=DEVICE), torch.zeros(9001, 2, device=DEVICE)
    loss, *grads = computed(hidden, torch.tensor([9000], device=DEVICE), weight, bias)
    torch.testing.assert_close(loss.cpu(), torch.tensor(2.0).log())
    assert not any(g.isnan().any() for g in grads)


def test_the_loss_is_float32_under_any_default_dtype():
    tensors = inputs(4, 3, 7)
    torch.set_default_dtype(torch.float64)
    try:
        assert op.forward(tensors[0], tensors[1], rows_of(tensors[1]), *tensors[2:], False)[0].dtype == F32
    finally:
        torch.set_default_dtype(F32)


def test_a_small_loss_keeps_its_digits():
    hidden, weight = torch.tensor([[1.0, 0.5, 0.5, 0.5]], device=DEVICE), torch.eye(4, device=DEVICE) * 20
    labels = torch.tensor([0], device=DEVICE)
    exact = reference.masked_lm_loss(hidden.double(), labels, weight.double())
    assert 1e-4 < exact < 1e-3
    torch.testing.assert_close(computed(hidden, labels, weight, None)[0].double(), exact, rtol=1e-3, atol=0)


def test_strided_tensors_and_two_backward_passes():
    hidden, labels, weight, bias = inputs(9, 24, 40)
    truth = computed(hidden, labels, weight, bias)
    strided = [t.repeat_interleave(3, -1)[..., ::3] for t in (hidden, labels, weight, bias, rows_of(labels, 8))]
    for a, b in zip(computed(*strided), truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    rows = rows_of(labels)
    _, grad_logits = op.forward(hidden, labels, rows, weight, bias, False)
    for _ in range(2):
        grads = op.backward(torch.tensor(3.0, device=DEVICE), grad_logits, hidden, rows, weight, False)
        for a, b in zip(grads, truth[1:], strict=True):
            assert torch.equal(a, b)


def test_writes_every_value_and_none_beside_them(monkeypatch):
    tensors = inputs(11, 43, 70)
    guarded = Guarded(monkeypatch)
    computed(*tensors)
    guarded.check(5)  # logits with their padding, losses, two gathers and the bias's gradient
