"""What only Triton's kernels of attention have: tiles, and other head sizes than BERT's."""

from functools import partial

import pytest
import torch

from earlybert_kernels.backends.triton import attention as op
from tests.helpers import attention_case
from tests.helpers.attention_case import DEVICE, Case

run = partial(attention_case.run, op)


@pytest.fixture(autouse=True)
def _fresh_memory_is_nan():
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def in_blocks(monkeypatch):
    """Keys come in blocks even where one would do, and some sequences have several blocks."""
    monkeypatch.setattr(op, "_tiles", lambda *_: (op.Tiles(16, 32, 4, 1), False))
    return monkeypatch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [8, 16, 64, 80, 96, 128, 37])
def test_head_sizes(size, dtype):
    case = Case((5, 19), size=size, dtype=dtype, gates=[0.5, -2.0], p=0.2)
    case.check(run(*case.inputs()))


@pytest.mark.parametrize(("p", "programs"), [(0.0, 1), (0.3, 1), (0.3, 8)])  # the keys in one share, or in two
def test_keys_in_blocks(in_blocks, p, programs):
    in_blocks.setattr(op, "_PROGRAMS", programs)
    case = Case((65, 7), gates=[0.5, -2.0], p=p)
    case.check(run(*case.inputs()))


@pytest.mark.parametrize("lengths", [(200,), (131, 256), (0, 3, 200)])  # the last has too few keys for a tile
@pytest.mark.parametrize("programs", [1, 256])  # of a head: one that goes through all queries, or many
def test_keys_that_stay_on_chip(lengths, programs, monkeypatch):
    monkeypatch.setattr(op, "_PROGRAMS", programs)
    case = Case(lengths, heads=1, size=16, dtype=torch.bfloat16, gates=[0.7], p=0.1)
    case.check(run(*case.inputs()))


def test_more_keys_than_any_tile_holds():
    case = Case((3, 519), heads=1, size=16, dtype=torch.float16, gates=[0.7], p=0.1)
    case.check(run(*case.inputs()))


@pytest.mark.parametrize("lengths_q", [(1, 1, 1), (3, 40, 0), (0, 2, 5)])
def test_fewer_queries_than_keys(lengths_q, in_blocks):
    case = Case((40, 50, 7), lengths_q=lengths_q, gates=[0.5, -1.0], p=0.2)
    case.check(run(*case.inputs()))


def test_empty_sequences(in_blocks):
    in_blocks.setattr(op, "_PROGRAMS", 12)
    case = Case((0, 5, 0, 33, 0), gates=[0.5, -1.0])
    case.check(run(*case.inputs()))


def test_queries_without_keys_get_zeros(in_blocks):
    grad_out, arguments = Case((4, 6), gates=[0.5, -1.0]).inputs()
    arguments[3] = torch.tensor([0, 0, 10], dtype=torch.int32, device=DEVICE)  # all keys are the second sequence's
    arguments[4] = 10
    out, grad_q, grad_k, *rest = run(grad_out, arguments)
    assert (out[:4] == 0).all() and (grad_q[:4] == 0).all()
    assert all(t.isfinite().all() for t in (out, grad_q, grad_k, *rest)) and (grad_k != 0).any()


@pytest.mark.parametrize("programs", [1, 12])
@pytest.mark.parametrize("zero", [True, False])
def test_pruned_heads_are_neither_read_nor_computed(zero, programs, in_blocks):
    in_blocks.setattr(op, "_PROGRAMS", programs)
    case = Case((40, 6), heads=3, mask=[True, False, True], gates=[0.5, 2.0, -1.0], p=0.2)
    grad_out, arguments = case.inputs()
    for t in (grad_out, *arguments[:3]):
        t[:, 1] = float("nan")
    out, logsumexp = op.forward(*arguments, zero_pruned=zero)
    if not zero:
        assert out[:, 1].isnan().all()  # as it was allocated
        logsumexp[1] = float("nan")
    grads = tuple(torch.full_like(t, 7.0) for t in arguments[:3])
    results = op.backward(grad_out, out, logsumexp, *arguments, zero_pruned=zero, grads=grads)
    if not zero:
        assert all((t[:, 1] == 7.0).all() for t in grads[1:])
        for t in (out, *grads):
            t[:, 1] = 0.0
    case.check((out, *results))


def test_strided_views_of_odd_heads_are_taken_and_written():
    case = Case((18, 4), size=20, dtype=torch.bfloat16, gates=[0.5, -1.0], p=0.1)
    grad_out, arguments = case.inputs()
    expected = run(grad_out, arguments)
    packed = torch.stack(arguments[:3], dim=2)  # (T, H, 3, D)
    arguments[:3] = (packed[:, :, i] for i in range(3))
    grad_packed = torch.full_like(packed, float("nan"))
    turned = grad_out.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    results = run(turned, arguments, grads=tuple(grad_packed[:, :, i] for i in range(3)))
    for i, (ours, theirs) in enumerate(zip(results, expected, strict=True)):
        assert torch.equal(ours, theirs), i
        assert i not in (1, 2, 3) or torch.equal(ours, grad_packed[:, :, i - 1])


def test_repeated_runs_are_equal(in_blocks):
    grad_out, arguments = Case((50, 33), dtype=torch.float16, gates=[0.5, -1.0], p=0.2).inputs()
    for ours, theirs in zip(run(grad_out, arguments), run(grad_out, arguments), strict=True):
        assert torch.equal(ours, theirs)


def test_larger_heads_are_refused():
    _, arguments = Case((3,), size=129).inputs()
    with pytest.raises(ValueError, match="heads of 129 values"):
        op.forward(*arguments)
