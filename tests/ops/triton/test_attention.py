"""The Triton kernels of attention, on a GPU where there is one, else by Triton's interpreter."""

import oracles
import pytest
import torch
from accuracy import assert_as_exact_as_pytorch

from earlybert_kernels.backends.triton import attention as op
from earlybert_kernels.reference.counter_rng import keep_mask

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEED = 0x123456789ABCDEF


class Case:
    """Inputs of both passes on the CPU in float64, exactly representable in `dtype`, and what they should give."""

    def __init__(self, lengths, heads=2, size=32, dtype=torch.float32, lengths_q=None, mask=None, gates=None, p=0.0):
        self.lengths, self.lengths_q, self.dtype, self.p = lengths, lengths_q or lengths, dtype, p
        shapes = [(sum(n), heads, size) for n in (self.lengths_q, lengths, lengths, self.lengths_q)]
        *self.qkv, self.grad_out = (torch.randn(shape).to(dtype).double() for shape in shapes)
        self.mask = None if mask is None else torch.tensor(mask)
        self.gates = None if gates is None else torch.tensor(gates)
        width = (max(lengths) + 3) // 4 * 4
        self.keep = keep_mask(SEED, (heads, sum(self.lengths_q), width), p) if p else None

    def defined(self, dtype):
        """Output and gradients by the definition."""
        leaves = [t.to(dtype).requires_grad_() for t in self.qkv]
        if self.gates is not None:
            leaves.append(self.gates.double().requires_grad_())
        present = [(n, n_q) for n, n_q in zip(self.lengths, self.lengths_q, strict=True) if n]
        out = oracles.attention(*leaves[:3], *zip(*present, strict=True), *leaves[3:], keep=self.keep, dropout_p=self.p)
        if self.mask is not None:
            out = out * self.mask[:, None]
        return out, *torch.autograd.grad(out, leaves, self.grad_out.to(dtype))

    def inputs(self):
        """`grad_out` and what both passes take, on the device."""
        *qkv, grad_out = (t.to(DEVICE, self.dtype) for t in (*self.qkv, self.grad_out))
        cu_seqlens, cu_seqlens_q = (
            torch.tensor([0, *n], dtype=torch.int32).cumsum(0).int().to(DEVICE) for n in (self.lengths, self.lengths_q)
        )
        mask, gates = (None if t is None else t.to(DEVICE) for t in (self.mask, self.gates))
        seed = torch.tensor(SEED, device=DEVICE) if self.p else None
        packing = (cu_seqlens, max(self.lengths), cu_seqlens_q, max(self.lengths_q))
        return grad_out, [*qkv, *packing, mask, gates, seed, self.p, qkv[0].shape[2] ** -0.5]

    def check(self, results):
        """`results`, output and gradients, are as exact as plain PyTorch is in this dtype."""
        results = [t.cpu() for t in results]
        assert {t.dtype for t in results[:4]} == {self.dtype} and results[4].dtype == torch.float32
        count = 4 if self.gates is None else 5
        assert results[4].numel() == (0 if self.gates is None else len(self.gates))
        assert_as_exact_as_pytorch(results[:count], self.defined(self.dtype), self.defined(torch.float64), self.dtype)


def run(grad_out, arguments, **options):
    out, logsumexp = op.forward(*arguments)
    return out, *op.backward(grad_out, out, logsumexp, *arguments, **options)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", [(1,), (7, 16, 3), (17, 1, 32), (64, 33), (127, 5)])
def test_output_and_gradients_match_the_definition(lengths, dtype):
    case = Case(lengths, dtype=dtype)
    case.check(run(*case.inputs()))


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


@pytest.mark.parametrize("lengths", [(13, 2), (30, 9), (50, 3), (70, 6)])
def test_dropout_keeps_what_the_shared_rule_keeps(lengths):
    # Small weights and plain values: what is kept or dropped wrongly shows far above rounding.
    case = Case(lengths, dtype=torch.float16, gates=[1.5, 0.5], p=0.4)
    case.check(run(*case.inputs()))


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("lengths_q", [(1, 1, 1), (3, 40, 0), (0, 2, 5)])
def test_fewer_queries_than_keys(lengths_q, blocks, request):
    if blocks:
        request.getfixturevalue("in_blocks")
    case = Case((40, 50, 7), lengths_q=lengths_q, gates=[0.5, -1.0], p=0.2)
    case.check(run(*case.inputs()))


def test_scores_far_below_zero():
    # Keys that are not there score 0, whose exponential against such a logsumexp is infinite.
    case = Case((5, 18), dtype=torch.bfloat16)
    case.qkv[:2] = (sign * (5 + t.abs()).bfloat16().double() for sign, t in zip((1, -1), case.qkv[:2], strict=True))
    case.check(run(*case.inputs()))


@pytest.mark.parametrize("blocks", [False, True])
def test_empty_sequences(blocks, request):
    if blocks:
        request.getfixturevalue("in_blocks").setattr(op, "_PROGRAMS", 12)
    case = Case((0, 5, 0, 33, 0), gates=[0.5, -1.0])
    case.check(run(*case.inputs()))


@pytest.mark.parametrize("blocks", [False, True])
def test_queries_without_keys_get_zeros(blocks, request):
    if blocks:
        request.getfixturevalue("in_blocks")
    grad_out, arguments = Case((4, 6), gates=[0.5, -1.0]).inputs()
    arguments[3] = torch.tensor([0, 0, 10], dtype=torch.int32, device=DEVICE)  # all keys are the second sequence's
    arguments[4] = 10
    out, grad_q, grad_k, *rest = run(grad_out, arguments)
    assert (out[:4] == 0).all() and (grad_q[:4] == 0).all()
    assert all(t.isfinite().all() for t in (out, grad_q, grad_k, *rest)) and (grad_k != 0).any()


def test_no_tokens_at_all():
    grad_out, arguments = Case((0, 0), gates=[0.5, -1.0]).inputs()
    out, grad_q, *_, grad_gates = run(grad_out, arguments)
    assert out.shape == grad_q.shape == (0, 2, 32) and grad_gates.tolist() == [0.0, 0.0]


def test_a_gate_of_zero_gets_its_gradient():
    case = Case((20, 9), gates=[0.0, 1.0], p=0.2)
    results = run(*case.inputs())
    case.check(results)
    assert results[0][:, 0].count_nonzero() == 0 and results[4][0] != 0


@pytest.mark.parametrize("programs", [0, 1, 12])  # 0: as the tables say
@pytest.mark.parametrize("zero", [True, False])
def test_pruned_heads_are_neither_read_nor_computed(zero, programs, request):
    if programs:
        request.getfixturevalue("in_blocks").setattr(op, "_PROGRAMS", programs)
    case = Case((40 if programs else 30, 6), heads=3, mask=[True, False, True], gates=[0.5, 2.0, -1.0], p=0.2)
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
        assert all((t[:, 1] == 7.0).all() for t in grads[1 if programs else 0 :])
        for t in (out, *grads):
            t[:, 1] = 0.0
    case.check((out, *results))


@pytest.mark.parametrize("size", [32, 20])
def test_strided_views_are_taken_and_written(size):
    case = Case((18, 4), size=size, dtype=torch.bfloat16, gates=[0.5, -1.0], p=0.1)
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


def test_the_logsumexp_is_that_of_the_scaled_scores():
    case = Case((9, 4), gates=[3.0, 1.0], p=0.5)
    _, arguments = case.inputs()
    arguments[-1] = -0.7  # a scale may be negative
    _, logsumexp = op.forward(*arguments)
    q, k, _ = case.qkv
    first, second = (torch.einsum("qhd,khd->hqk", q[rows], k[rows]) * -0.7 for rows in (slice(9), slice(9, 13)))
    expected = torch.cat([first.logsumexp(2), second.logsumexp(2)], dim=1)
    torch.testing.assert_close(logsumexp.cpu().double(), expected, rtol=1e-6, atol=1e-6)


def test_a_bound_far_above_the_lengths_costs_and_changes_nothing():
    grad_out, arguments = Case((9, 4)).inputs()
    expected = run(grad_out, arguments)
    arguments[4] = arguments[6] = 1 << 40
    for ours, theirs in zip(run(grad_out, arguments), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_larger_heads_are_refused():
    _, arguments = Case((3,), size=129).inputs()
    with pytest.raises(ValueError, match="heads of 129 values"):
        op.forward(*arguments)
