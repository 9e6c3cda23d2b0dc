import pytest
import torch

from earlybert_kernels import reference
from earlybert_kernels.backends import triton
from earlybert_kernels.reference.counter_rng import keep_mask, kept_scale
from tests.helpers.accuracy import assert_as_exact_as_pytorch
from tests.helpers.guarded import Guarded

if triton.unavailable() is not None:
    pytest.skip(f"triton: {triton.unavailable()}", allow_module_level=True)

from earlybert_kernels.backends.triton import dropout_add_layer_norm as op
from tests.helpers.covering import every_pair

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEED = 0x123456789ABCDEF
EPS = 1e-5
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
# One row, fewer rows than a program holds, one more; widths of one tile, of two and of three, full or not.
SHAPES = [(1, 1), (300, 3), (17, 43), (21, 384), (9, 768), (3, 1000), (2, 3, 1024), (2, 1843), (1, 8192)]


def inputs(shape, dtypes=(F32, F32, F32)):
    """x, residual, weight, bias and a gradient of the output; `dtypes` of x, of residual and of weight."""
    cols = shape[-1]
    x, residual, weight, bias, grad_out = (torch.randn(s) for s in (shape, shape, (cols,), (cols,), shape))
    tensors = (x, residual + 3, 1 + 0.2 * weight, bias, grad_out)
    dtypes = (*dtypes, dtypes[2], dtypes[1])
    return [t.to(DEVICE, d) for t, d in zip(tensors, dtypes, strict=True)]


def computed(x, residual, weight, bias, grad_out, p, seed=SEED):
    """Output, gradients and the column sums of grad_x, by the kernels."""
    seed = None if p is None else torch.tensor(seed, device=DEVICE)
    out, mean, rstd, out_cast = op.forward(x, residual, weight, bias, seed, p or 0.0, EPS, cast_out=True)
    assert mean.dtype == rstd.dtype == F32
    assert out_cast is None if x.dtype == residual.dtype else torch.equal(out_cast, out.to(x.dtype))
    grad_x, grad_residual, *grads, residual_cast = op.backward(
        grad_out, x, residual, weight, mean, rstd, seed, p or 0.0, cast_residual=True
    )
    assert torch.equal(residual_cast, residual.to(x.dtype))
    assert (grad_x is None) == (p is None and x.dtype == residual.dtype)
    return out, grad_residual if grad_x is None else grad_x, grad_residual, *grads


def defined(x, residual, weight, bias, grad_out, p, double):
    """The same by the reference, in float64 or in the tensors' own dtypes."""
    keep = keep_mask(SEED, x.shape, p or 0.0, DEVICE)
    leaves = [t.double() if double else t.clone() for t in (x, residual, weight, bias)]
    leaves = [t.requires_grad_() for t in leaves]
    out = reference.dropout_add_layer_norm(*leaves, dropout_p=p or 0.0, eps=EPS, keep=keep)
    grads = torch.autograd.grad(out, leaves, grad_out.to(out.dtype))
    return out, *grads, grads[0].flatten(0, -2).sum(0)


def check(tensors, p):
    ours = computed(*tensors, p)
    x, residual, weight, bias, _ = tensors
    assert [t.dtype for t in ours] == [residual.dtype, *(t.dtype for t in (x, residual, weight, bias, x))]
    plain, truth = defined(*tensors, p, False), defined(*tensors, p, True)
    for a, b, exact in zip(ours, plain, truth, strict=True):
        assert a.shape == exact.shape
        assert_as_exact_as_pytorch([a], [b], [exact], a.dtype)


@pytest.mark.parametrize("p", [None, 0.1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients(shape, p):
    check(inputs(shape), p)


@every_pair(half=[F16, BF16], of_residual_and_weight=["half, half", "half, full", "full, full"], p=[None, 0.7])
def test_half_precision_and_mixed(half, of_residual_and_weight, p):
    residual, weight = (half if name == "half" else F32 for name in of_residual_and_weight.split(", "))
    for shape in ((13, 43), (9, 384)):
        check(inputs(shape, (half, residual, weight)), p)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (4, 43), (3, 384), (2, 3, 1000)], ids=str)
def test_drops_what_the_shared_rule_drops_forward_and_backward(shape):
    x, residual, weight, bias, grad_out = inputs(shape)
    keep = keep_mask(SEED, shape, 0.4, DEVICE)
    # Far from the residual, what is kept shows in the output; gradients show it in grad_x.
    x, residual = torch.full_like(x, 1e6), torch.zeros_like(residual)
    seed = torch.tensor(SEED, device=DEVICE)
    out, mean, *_ = op.forward(x, residual, torch.ones_like(weight), torch.zeros_like(bias), seed, 0.4, EPS)
    assert torch.equal(out > out.mean(-1, keepdim=True), keep & ~keep.all(-1, keepdim=True))
    torch.testing.assert_close(mean, keep.float().mean(-1) * 1e6 * kept_scale(0.4))
    x = torch.randn_like(x)
    _, grad_x, grad_residual, *_ = computed(x, residual, weight, bias, grad_out, 0.4)
    torch.testing.assert_close(grad_x, torch.where(keep, grad_residual * kept_scale(0.4), 0.0))
    assert not grad_x[~keep].any()


def test_a_seed_with_probability_zero_drops_nothing():
    tensors = inputs((5, 12))
    for a, b in zip(computed(*tensors, 0.0), computed(*tensors, None), strict=True):
        torch.testing.assert_close(a, b)


def test_seeds_of_all_64_bits():
    x, residual, weight, bias, grad_out = inputs((4, 64))
    residual = torch.zeros_like(residual)
    for seed in (-1, 1 << 40, -(1 << 63)):
        grad_x = computed(x, residual, weight, bias, grad_out, 0.5, seed)[1]
        assert torch.equal(grad_x != 0, keep_mask(seed, x.shape, 0.5, DEVICE))


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 7)], ids=str)
def test_no_rows(shape):
    for p in (None, 0.1):
        out, grad_x, grad_residual, *sums = computed(*inputs(shape), p)
        assert out.shape == grad_x.shape == grad_residual.shape == shape
        assert not any(t.any() for t in sums)


def test_strided_and_misaligned_tensors():
    x, residual, weight, bias, grad_out = inputs((6, 64))
    truth = computed(x, residual, weight, bias, grad_out, 0.1)

    def misaligned(t):
        return torch.empty(t.numel() + 1, device=DEVICE)[1:].view(t.shape).copy_(t)

    for change in (misaligned, lambda t: t.t().contiguous().t(), lambda t: t.repeat_interleave(2, -1)[..., ::2]):
        ours = computed(change(x), change(residual), misaligned(weight), misaligned(bias), change(grad_out), 0.1)
        for a, b in zip(ours, truth, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_large_mean_does_not_cancel():
    x, residual, weight, bias, grad_out = inputs((8, 256))
    check((x, residual + 1000.0, weight, bias, grad_out), None)


def test_writes_every_value_and_none_beside_them(monkeypatch):
    tensors = inputs((11, 43))
    guarded = Guarded(monkeypatch)
    computed(*tensors, 0.1)
    guarded.check(9)  # three results of forward; five of backward, and the partial sums


def test_results_are_bitwise_equal_in_every_run():
    tensors = inputs((300, 7))
    for a, b in zip(computed(*tensors, 0.1), computed(*tensors, 0.1), strict=True):
        assert torch.equal(a, b)
