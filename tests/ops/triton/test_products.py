"""The matrix products, on parts that only the device knows, against float64."""

import pytest
import torch
import torch.nn.functional as F

from earlybert_kernels.backends import triton

if triton.unavailable() is not None:
    pytest.skip(triton.unavailable(), allow_module_level=True)

from earlybert_kernels.backends.triton import products
from earlybert_kernels.backends.triton.matmul import Tile, Used, matmul, matmul_activation_backward
from tests.helpers.covering import every_pair

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TILE = Tile(16, 32, 16, 4, 2)
#: Rows, columns, inner size: a tile and less, primes, one of each, nothing at all.
SIZES = [(16, 32, 16), (1, 1, 1), (37, 43, 53), (64, 16, 100), (5, 70, 0), (0, 8, 8)]


def operands(sizes, dtype, transposed=False):
    rows, columns, inner = sizes
    a = torch.randn(inner, rows).t() if transposed else torch.randn(rows, inner)
    b = torch.randn(inner, columns) if transposed else torch.randn(columns, inner).t()
    return a.to(DEVICE, dtype), b.to(DEVICE, dtype)


def assert_exact(ours, truth, dtype, inner):
    """Within the rounding of the result, and of one product for each inner element."""
    scale = truth.abs().max() if truth.numel() else torch.zeros(())
    tolerance = torch.finfo(dtype).eps * scale + inner**0.5 * 1e-6 * (1 + scale)
    assert ours.shape == truth.shape and ours.dtype == dtype
    assert not ours.numel() or (ours.double() - truth).abs().max() <= tolerance


def used_of(dimension, units, size=1):
    return dimension, Used(torch.tensor(units, dtype=torch.int32, device=DEVICE), size)


@every_pair(sizes=SIZES, transposed=[False, True], dtype=DTYPES)
def test_product(sizes, transposed, dtype):
    a, b = operands(sizes, dtype, transposed)
    bias = torch.randn(sizes[1]).to(a)
    out, preactivation = matmul(a, b, TILE, bias=bias)
    assert preactivation is None
    assert_exact(out, a.double() @ b.double() + bias.double(), dtype, sizes[2])


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_activation_behind_and_in_front_of_a_product(dtype, activation):
    apply = {"gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}[activation]
    a, b = operands((37, 43, 24), dtype)
    bias = torch.randn(43).to(a)
    out, preactivation = matmul(a, b, TILE, bias=bias, activation=activation)
    exact = a.double() @ b.double() + bias.double()
    assert_exact(preactivation, exact, dtype, 24)
    assert_exact(out, apply(exact), dtype, 24)

    before = preactivation.double().requires_grad_()
    (truth,) = torch.autograd.grad(apply(before), before, a.double() @ b.double())
    grad, activated, sums = matmul_activation_backward(a, b, preactivation, TILE, activation)
    assert_exact(grad, truth, dtype, 24)
    assert_exact(activated, apply(before).detach(), dtype, 24)
    torch.testing.assert_close(sums.double(), truth.sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("units", "size"), [(0, 1), (1, 1), (17, 1), (48, 1), (2, 8), (3, 16)])
def test_only_the_used_part_is_computed(units, size, dtype):
    """Behind the last tile that begins within it nothing is written, nor read further than the docstring says."""
    used, total = units * size, 48
    a, b = operands((33, total, 20), dtype)
    exact = a.double() @ b.double()
    out, _ = matmul(a, b, TILE, used=used_of("n", units, size))
    assert_exact(out[:, :used], exact[:, :used], dtype, 20)
    out, _ = matmul(b.t(), a.t(), TILE, used=used_of("m", units, size))
    assert_exact(out[:used], exact.t()[:used], dtype, 20)

    a, b = operands((33, 20, total), dtype, transposed=units % 2 == 0)
    read = -(-used // 16) * 16 if size == 1 else used
    a[:, read:], b[read:] = float("nan"), float("nan")
    a[:, used:read] = 0
    out, _ = matmul(a, b, TILE, used=used_of("k", units, size))
    assert_exact(out, a[:, :used].double() @ b[:used].double(), dtype, total)


def test_a_result_added_to_another_and_one_summed_from_parts():
    a, b = operands((37, 43, 100), torch.bfloat16, transposed=True)
    before = torch.randn(37, 43, device=DEVICE)
    total = before.clone()
    out, _ = matmul(a, b, TILE, add_to=total)
    assert out is total
    torch.testing.assert_close(total.double(), before.double() + a.double() @ b.double(), rtol=1e-5, atol=1e-4)
    for parts in (2, 3, 9):
        out, _ = matmul(a, b, TILE, parts=parts)
        assert_exact(out, a.double() @ b.double(), torch.bfloat16, 100)


@pytest.mark.parametrize("tokens", [50, 5000])
@pytest.mark.parametrize("architecture", [80, 86, 90, 100, 120])
def test_the_table_has_a_tile_for_everything(architecture, tokens, monkeypatch):
    monkeypatch.setattr(products, "architecture", lambda tensor: architecture)
    for kind in products.KINDS:
        for dtype in DTYPES:
            library, tile, parts = products.choice(kind, torch.empty(1, dtype=dtype), tokens)
            assert isinstance(library, bool) and parts >= 1
            assert tile.m % 16 == tile.n % 16 == tile.k % 16 == 0
            # What an inner dimension reads behind the used part lies within the tile that wrote it.
            assert tile.n % 16 == 0


@pytest.mark.parametrize("library", [False, True])
def test_library_and_kernel_agree(library, monkeypatch):
    monkeypatch.setattr(products, "choice", lambda kind, x, tokens: (library, TILE, 2))
    x, weight, bias = (torch.randn(s).to(DEVICE, torch.bfloat16) for s in ((37, 20), (43, 20), (43,)))
    grad_y = torch.randn(37, 43).to(x)
    exact = x.double() @ weight.double().t() + bias.double()
    y, before = products.linear(x, weight, bias, activation="gelu")
    assert_exact(before, exact, torch.bfloat16, 20)
    torch.testing.assert_close(y.double(), F.gelu(exact), rtol=0.016, atol=0.02)
    assert_exact(products.linear(x, weight, bias)[0], exact, torch.bfloat16, 20)
    grad_x = grad_y.double() @ weight.double()
    assert_exact(products.linear_grad_input(grad_y, weight), grad_x, torch.bfloat16, 43)
    for dtype in (torch.bfloat16, torch.float32):
        total = torch.ones(37, 20, device=DEVICE, dtype=dtype)
        assert products.linear_grad_input(grad_y, weight, add_to=total) is total
        torch.testing.assert_close(total.double(), 1 + grad_x, rtol=0.02, atol=0.05)
    assert_exact(products.linear_grad_weight(grad_y, x), grad_y.double().t() @ x.double(), torch.bfloat16, 37)
    before = torch.randn(37, 20).to(x)
    leaf = before.double().requires_grad_()
    (truth,) = torch.autograd.grad(F.gelu(leaf), leaf, grad_x)
    grad, activated, sums = products.linear_grad_preactivation(grad_y, weight, before, "gelu")
    torch.testing.assert_close(grad.double(), truth, rtol=0.02, atol=0.05)
    torch.testing.assert_close(activated.double(), F.gelu(leaf).detach(), rtol=0.01, atol=0.01)
    torch.testing.assert_close(sums.double(), truth.sum(0), rtol=0.02, atol=0.2)
