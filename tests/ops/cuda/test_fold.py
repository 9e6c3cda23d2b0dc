"""The computed units' parts of weights, gates folded into them, and the way back, against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earlybert_kernels.backends import cuda
from tests.helpers.targets import device_of

if cuda.unavailable() is not None:
    pytest.skip(cuda.unavailable(), allow_module_level=True)

from earlybert_kernels.backends.cuda.fold import fold, unfold
from earlybert_kernels.backends.cuda.units import put, take
from tests.helpers.covering import every_pair

DEVICE = device_of("cuda")
KEPT = {"all": None, "some": [0, 2, 3, 6], "unsorted": [5, 0, 6], "one": [5], "none": []}


def indices(kept):
    return None if kept is None else torch.tensor(kept, dtype=torch.long, device=DEVICE)


def columns_of(units, size):
    return [unit * size + column for unit in units for column in range(size)]


@every_pair(
    shape=[(1, 7, 1), (67, 7, 13), (70, 7, 16), (3, 7, 64), (9, 7, 300)],  # rows, units, columns of each
    kept=list(KEPT),
    gated=[False, True],
    dtype=[torch.float32, torch.float16, torch.bfloat16],
)
def test_fold_and_its_gradients(shape, kept, gated, dtype):
    rows, units, size = shape
    columns = columns_of(range(units) if KEPT[kept] is None else KEPT[kept], size)
    weight = torch.randn(rows, units * size).to(DEVICE, dtype)
    gates = torch.randn(units, device=DEVICE) if gated else None
    scale = torch.ones(units, device=DEVICE) if gates is None else gates
    scale = scale.repeat_interleave(size)
    computed = indices(KEPT[kept])

    folded = fold(weight, computed, gates, size)
    assert folded.shape == (rows, len(columns))
    assert torch.equal(folded, (weight.float() * scale).to(dtype)[:, columns])

    grad_folded = torch.randn(folded.shape).to(folded)
    grad_weight, grad_gates = unfold(grad_folded, weight, computed, gates, size)
    truth = torch.zeros(rows, units * size, device=DEVICE)
    truth[:, columns] = grad_folded.float()
    assert torch.equal(grad_weight, (truth * scale).to(dtype))
    if gates is None:
        assert grad_gates.shape == (0,)
    else:
        exact_gates = (truth.double() * weight.double()).sum(0).view(units, size).sum(1)
        torch.testing.assert_close(grad_gates.double(), exact_gates, rtol=1e-5, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), units=st.integers(1, 40), size=st.integers(1, 40), seed=st.integers(0, 999))
def test_gradients_are_those_of_autograd(rows, units, size, seed):
    torch.manual_seed(seed)
    weight, gates = torch.randn(rows, units * size, dtype=torch.float64), torch.randn(units, dtype=torch.float64)
    kept = torch.randperm(units)[: int(torch.randint(0, units + 1, ()))]
    weight.requires_grad_()
    gates.requires_grad_()
    folded = (weight * gates.repeat_interleave(size))[:, columns_of(kept.tolist(), size)]
    grad_folded = torch.randn_like(folded)
    exact = torch.autograd.grad(folded, (weight, gates), grad_folded)
    arguments = (t.detach().to(DEVICE, torch.float32) for t in (grad_folded, weight, gates))
    grad_folded, weight, gates = arguments
    ours = unfold(grad_folded, weight, kept.to(DEVICE), gates, size)
    for result, truth in zip(ours, exact, strict=True):
        torch.testing.assert_close(result.cpu().double(), truth, rtol=1e-5, atol=1e-6 * (rows * size) ** 0.5 * 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8])
@pytest.mark.parametrize("kept", KEPT)
def test_rows_taken_and_put_back(kept, dtype):
    weight = torch.arange(1, 43, device=DEVICE).view(7, 3, 2).to(dtype)
    part = take(weight, indices(KEPT[kept]))
    chosen = slice(None) if KEPT[kept] is None else KEPT[kept]
    assert torch.equal(part, weight[chosen])
    truth = torch.zeros_like(weight)
    truth[chosen] = weight[chosen]
    assert torch.equal(put(part, indices(KEPT[kept]), 7), truth)


def test_what_is_no_unit_chooses_none():
    weight, units = torch.randn(3, 5, device=DEVICE), indices([4, -1, 5, 2])
    gates = torch.tensor([float("nan"), 2.0, 3.0, 4.0, 5.0], device=DEVICE)
    expected = torch.stack([5 * weight[:, 4], 0 * weight[:, 0], 0 * weight[:, 0], 3 * weight[:, 2]], dim=1)
    assert torch.equal(fold(weight, units, gates), expected)
    grad = torch.full((3, 4), float("nan"), device=DEVICE)
    grad[:, 0], grad[:, 3] = 1.0, 2.0
    grad_weight, grad_gates = unfold(grad, weight, units, gates)
    assert torch.equal(grad_weight, torch.tensor([0.0, 0.0, 6.0, 0.0, 5.0], device=DEVICE).expand(3, 5))
    torch.testing.assert_close(grad_gates, torch.tensor([0, 0, 2.0, 0, 1.0], device=DEVICE) * weight.sum(0))


def test_columns_of_strided_tensors():
    weight, gates = torch.randn(7, 10, device=DEVICE).t(), torch.randn(7, device=DEVICE)
    assert torch.equal(fold(weight, None, gates), weight * gates)
    grad = torch.randn(7, 10, device=DEVICE).t()
    grad_weight, grad_gates = unfold(grad, weight, None, gates)
    assert torch.equal(grad_weight, grad * gates)
    torch.testing.assert_close(grad_gates, (grad * weight).sum(0))
