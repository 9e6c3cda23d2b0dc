import oracles
import pytest
import torch

import earlybert_kernels as ek


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
    assert torch.autograd.gradcheck(
        lambda h, w, b: ek.ops.masked_lm_loss(h, labels, w, b), (hidden, weight, bias)
    )


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
