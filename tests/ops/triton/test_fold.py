"""Gates folded into weights and the computed units' columns of them, against float64."""

import pytest
import torch

from earlybert_kernels.backends import triton

if triton.unavailable() is not None:
    pytest.skip(triton.unavailable(), allow_module_level=True)

from earlybert_kernels.backends.triton.fold import fold, unfold
from earlybert_kernels.backends.triton.units import computed_units, put, take
from tests.helpers.covering import every_pair

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KEPT = {"all": None, "some": [0, 2, 3, 6], "one": [5], "none": []}


def active_of(kept, units, as_mask):
    if kept is None:
        return None
    mask = torch.zeros(units, dtype=torch.bool)
    mask[kept] = True
    return (mask if as_mask else mask.nonzero().squeeze(1)).to(DEVICE)


@every_pair(
    shape=[(1, 7, 1), (67, 7, 13), (130, 7, 16)],  # rows, units, columns of each
    kept=list(KEPT),
    gated=[False, True],
    dtype=[torch.float32, torch.bfloat16],
    as_mask=[False, True],
)
def test_fold_and_its_gradients(shape, kept, gated, dtype, as_mask):
    rows, units, size = shape
    units_kept = list(range(units)) if KEPT[kept] is None else KEPT[kept]
    columns = [unit * size + column for unit in units_kept for column in range(size)]
    weight = torch.randn(rows, units * size).to(DEVICE, dtype)
    gates = torch.randn(units, device=DEVICE) if gated else None
    scale = torch.ones(units, device=DEVICE) if gates is None else gates
    scale = scale.double().repeat_interleave(size)
    computed = computed_units(active_of(KEPT[kept], units, as_mask))

    folded = fold(weight, computed, gates, size)
    exact = (weight.double() * scale)[:, columns]
    torch.testing.assert_close(folded[:, : len(columns)], exact.to(dtype))
    assert not folded[:, len(columns) :].any()

    grad_folded = torch.randn(folded.shape).to(folded)
    grad_folded[:, len(columns) :] = float("nan")
    grad_weight, grad_gates = unfold(grad_folded, weight, computed, gates, size)
    truth = torch.zeros(rows, units * size, dtype=torch.float64, device=DEVICE)
    truth[:, columns] = grad_folded[:, : len(columns)].double()
    torch.testing.assert_close(grad_weight, (truth * scale).to(dtype))
    if gates is None:
        assert grad_gates.shape == (0,)
    else:
        exact_gates = (truth * weight.double()).sum(0).view(units, size).sum(1)
        torch.testing.assert_close(grad_gates.double(), exact_gates, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("as_mask", [False, True])
@pytest.mark.parametrize("kept", KEPT)
def test_rows_taken_and_put_back(kept, as_mask):
    weight = torch.randn(7, 3, 2, device=DEVICE)
    computed = computed_units(active_of(KEPT[kept], 7, as_mask))
    part = take(weight, computed)
    units_kept = slice(None) if KEPT[kept] is None else KEPT[kept]
    number = 7 if KEPT[kept] is None else len(KEPT[kept])
    assert torch.equal(part[:number], weight[units_kept])
    part = part.clone()
    part[number:] = float("nan")
    truth = torch.zeros_like(weight)
    truth[units_kept] = weight[units_kept]
    assert torch.equal(put(part, computed, 7), truth)


def test_what_stands_for_none_is_never_a_pruned_units():
    """A product reads a little behind the computed units: nothing of a pruned one may be there."""
    weight = torch.full((7, 3), float("nan"), device=DEVICE)
    weight[4] = 1.0
    assert torch.equal(take(weight, computed_units(active_of([4], 7, True))), torch.ones_like(weight))


def test_columns_of_a_strided_weight():
    weight = torch.randn(7, 10, device=DEVICE).t()
    gates = torch.randn(7, device=DEVICE)
    assert torch.equal(fold(weight, None, gates), weight * gates)
