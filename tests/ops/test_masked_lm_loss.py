import pytest
import torch

import earlybert_kernels as ek
from earlybert_kernels.backends import cpu
from tests.helpers import oracles
from tests.helpers.accuracy import assert_defined_by

needs_cpu = pytest.mark.skipif(cpu.unavailable() is not None, reason=f"cpu: {cpu.unavailable()}")


def inputs(tokens=7, size=5, vocabulary=11, dtype=torch.float64):
    hidden = torch.randn(tokens, size, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, size, dtype=dtype, requires_grad=True)
    bias = torch.randn(vocabulary, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, vocabulary, (tokens,))
    labels[::2] = -100
    return hidden, labels, weight, bias


@pytest.mark.parametrize("with_bias", [True, False])
def test_loss_and_gradients_match_the_definition(with_bias):
    hidden, labels, weight, bias = inputs()
    bias = bias if with_bias else None
    wanted = [t for t in (hidden, weight, bias) if t is not None]
    ours = ek.ops.masked_lm_loss(hidden, labels, weight, bias)
    truth = oracles.masked_lm_loss(hidden, labels, weight, bias)
    torch.testing.assert_close(ours, truth, rtol=1e-13, atol=1e-13)
    for a, b in zip(torch.autograd.grad(ours, wanted), torch.autograd.grad(truth, wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradcheck():
    hidden, labels, weight, bias = inputs(4, 3, 5)
    assert torch.autograd.gradcheck(lambda h, w, b: ek.ops.masked_lm_loss(h, labels, w, b), (hidden, weight, bias))


def test_unlabelled_rows_are_not_read():
    hidden, labels, weight, bias = inputs()
    loss = ek.ops.masked_lm_loss(hidden, labels, weight, bias)
    poisoned = hidden.detach().clone()
    poisoned[labels == -100] = float("nan")
    assert torch.equal(loss, ek.ops.masked_lm_loss(poisoned, labels, weight, bias))


def test_no_labelled_row_gives_zero_and_zero_gradients():
    hidden, labels, weight, bias = inputs()
    loss = ek.ops.masked_lm_loss(hidden, torch.full_like(labels, -100), weight, bias)
    assert loss.item() == 0
    for gradient in torch.autograd.grad(loss, (hidden, weight, bias)):
        assert not gradient.any()


def test_half_precision_loss_is_float32():
    hidden, labels, weight, bias = inputs(dtype=torch.bfloat16)
    assert ek.ops.masked_lm_loss(hidden, labels, weight, bias).dtype == torch.float32


@needs_cpu
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("tokens", "size", "vocabulary"), [(2, 1, 1), (7, 5, 11), (40, 33, 97), (90, 48, 1999)])
def test_compiled_loss_and_gradients(isa, tokens, size, vocabulary, with_bias):
    hidden, labels, weight, bias = inputs(tokens, size, vocabulary)

    def call(hidden, weight, bias=None):
        return 3 * ek.ops.masked_lm_loss(hidden, labels, weight, bias, backend=backend)

    tensors = (hidden, weight, bias) if with_bias else (hidden, weight)
    backend = None  # float32 goes to the kernels and float64 to the definition
    assert_defined_by(call, lambda *t: call(*t), tensors)
    backend = "cpu"
    assert call(*(t.detach().float() for t in tensors)).isfinite()


@needs_cpu
def test_compiled_loss_of_extreme_logits(isa):
    weight = torch.eye(5)
    hidden = torch.tensor([[1e4, 0, 0, 0, -1e4], [0.0, 0, 0, 0, 0], [float("nan"), 0, 0, 0, 0]])
    labels = torch.tensor([4, 2, -100])
    loss = ek.ops.masked_lm_loss(hidden, labels, weight, backend="cpu")
    torch.testing.assert_close(loss, (torch.tensor(2e4) + torch.tensor(5.0).log()) / 2)
    assert ek.ops.masked_lm_loss(hidden, torch.tensor([-100, 2, 0]), weight, backend="cpu").isnan()


@needs_cpu
def test_a_small_compiled_loss_keeps_its_digits(isa):
    weight = torch.eye(4) * 20
    hidden = torch.tensor([[1.0, 0.5, 0.5, 0.5]])
    labels = torch.tensor([0])
    exact = ek.ops.masked_lm_loss(hidden.double(), labels, weight.double())
    assert 1e-4 < exact < 1e-3
    torch.testing.assert_close(
        ek.ops.masked_lm_loss(hidden, labels, weight, backend="cpu").double(), exact, rtol=1e-3, atol=0
    )


@needs_cpu
def test_gradients_may_be_asked_for_twice():
    hidden, labels, weight, bias = (t.detach().float() if t.is_floating_point() else t for t in inputs())
    weight.requires_grad_()
    loss = ek.ops.masked_lm_loss(hidden, labels, weight, bias, backend="cpu")
    first = torch.autograd.grad(loss, weight, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, weight)[0])


@needs_cpu
def test_opcheck():
    hidden, labels, weight, bias = inputs()
    rows = torch.tensor([1, 3, 5])
    for own_bias in (bias.detach().float().requires_grad_(), None):
        tensors = (hidden.detach().float().requires_grad_(), labels, rows, weight.detach().float().requires_grad_())
        torch.library.opcheck(torch.ops.earlybert.masked_lm_loss.cpu, (*tensors, own_bias, False))


@needs_cpu
def test_labels_outside_the_vocabulary_are_refused():
    hidden, labels, weight, bias = (t.detach().float() if t.is_floating_point() else t for t in inputs())
    for backend in ("cpu", "reference"):
        with pytest.raises(IndexError):
            ek.ops.masked_lm_loss(hidden, labels.clone().fill_(11), weight, bias, backend=backend)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.zeros(6, dtype=torch.long)}, ValueError, r"labels has shape \(6,\)"),
        ({"labels": torch.zeros(7)}, TypeError, "expected torch.int64"),
        ({"weight": torch.zeros(11, 4)}, ValueError, r"hidden has shape \(7, 5\)"),
        ({"bias": torch.zeros(10)}, ValueError, r"bias has shape \(10,\)"),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    arguments = dict(zip(("hidden", "labels", "weight", "bias"), inputs(), strict=True)) | change
    with pytest.raises(error, match=message):
        ek.ops.masked_lm_loss(**arguments)
