"""The kernels of attention that run on GPUs, Triton's and CUDA's: there if there is one, else on the CPU."""

import pytest
import torch

from earlybert_kernels.backends import cuda, triton
from earlybert_kernels.backends.triton import attention as triton_attention
from tests.helpers.attention_case import DEVICE, Case, run

pytestmark = pytest.mark.usefixtures("fresh_memory_is_nan")

HALF = (torch.bfloat16, torch.float16)


def _missing(backend):
    reason = backend.unavailable()
    return pytest.mark.skipif(reason is not None, reason=f"{backend.__name__}: {reason}")


#: The backends' modules, with the dtypes that they take.
KERNELS = [
    *(pytest.param((triton_attention, d), id=f"triton-{d}", marks=_missing(triton)) for d in (torch.float32, *HALF)),
    *(pytest.param((cuda.attention, d), id=f"cuda-{d}", marks=_missing(cuda)) for d in HALF),
]


@pytest.fixture(params=KERNELS)
def kernel(request):
    """A backend's module and a dtype, in turn."""
    return request.param


@pytest.fixture(params=[KERNELS[0], KERNELS[3]])
def one_kernel(request):
    """A backend's module and one dtype."""
    return request.param


@pytest.mark.parametrize("lengths", [(1,), (7, 16, 3), (17, 1, 32), (64, 33), (127, 5)])
def test_output_and_gradients_match_the_definition(kernel, lengths):
    op, dtype = kernel
    case = Case(lengths, dtype=dtype)
    case.check(run(op, *case.inputs()))


@pytest.mark.parametrize("window", [1, 6, 32, 80])
@pytest.mark.parametrize(("lengths", "lengths_q"), [((17, 1, 5), None), ((70, 9), None), ((40, 3), (9, 1))])
def test_with_a_window_only_near_tokens_count(window, lengths, lengths_q):
    if triton.unavailable() is not None:
        pytest.skip(f"triton: {triton.unavailable()}")
    case = Case(lengths, lengths_q=lengths_q, gates=[1.5, 0.5], p=0.2, window=window)
    case.check(run(triton_attention, *case.inputs()))


@pytest.mark.parametrize("lengths", [(13, 2), (30, 9), (50, 3), (70, 6)])
def test_dropout_keeps_what_the_shared_rule_keeps(one_kernel, lengths):
    # Small weights and plain values: what is kept or dropped wrongly shows far above rounding.
    op, dtype = one_kernel
    case = Case(lengths, dtype=dtype, gates=[1.5, 0.5], p=0.4)
    case.check(run(op, *case.inputs()))


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("lengths", [(200,), (131, 256), (0, 3, 512)])
def test_long_sequences(lengths, size):
    if cuda.unavailable() is not None:
        pytest.skip(f"cuda: {cuda.unavailable()}")
    if max(lengths) > cuda.attention.max_keys(0, size):
        pytest.skip("this GPU's blocks have too little shared memory")
    case = Case(lengths, heads=1, size=size, dtype=torch.bfloat16, gates=[0.7], p=0.1)
    case.check(run(cuda.attention, *case.inputs()))


@pytest.mark.parametrize("lengths_q", [(1, 1, 1), (3, 40, 0), (0, 2, 5)])
def test_fewer_queries_than_keys(one_kernel, lengths_q):
    op, dtype = one_kernel
    case = Case((40, 50, 7), dtype=dtype, lengths_q=lengths_q, gates=[0.5, -1.0], p=0.2)
    case.check(run(op, *case.inputs()))


def test_more_queries_than_keys(one_kernel):
    op, dtype = one_kernel
    case = Case((3, 17), dtype=dtype, lengths_q=(70, 1), gates=[0.5, -1.0], p=0.2)
    case.check(run(op, *case.inputs()))


@pytest.mark.parametrize("kernel", [KERNELS[1], KERNELS[3]], indirect=True)  # both in bfloat16
def test_scores_far_below_zero(kernel):
    # Keys that are not there score 0, whose exponential against such a logsumexp is infinite.
    op, dtype = kernel
    case = Case((5, 18), dtype=dtype, gates=[1.0, 0.5])
    case.qkv[:2] = (sign * (5 + t.abs()).bfloat16().double() for sign, t in zip((1, -1), case.qkv[:2], strict=True))
    case.check(run(op, *case.inputs()))


def test_empty_sequences(one_kernel):
    op, dtype = one_kernel
    case = Case((0, 5, 0, 33, 0), dtype=dtype, gates=[0.5, -1.0])
    case.check(run(op, *case.inputs()))


def test_queries_without_keys_get_zeros(one_kernel):
    op, dtype = one_kernel
    grad_out, arguments = Case((4, 6), dtype=dtype, gates=[0.5, -1.0]).inputs()
    arguments[3] = torch.tensor([0, 0, 10], dtype=torch.int32, device=DEVICE)  # all keys are the second sequence's
    arguments[4] = 10
    out, grad_q, grad_k, *rest = run(op, grad_out, arguments)
    assert (out[:4] == 0).all() and (grad_q[:4] == 0).all()
    assert all(t.isfinite().all() for t in (out, grad_q, grad_k, *rest)) and (grad_k != 0).any()


def test_keys_without_queries_get_zeros(one_kernel):
    op, dtype = one_kernel
    grad_out, arguments = Case((4, 6), dtype=dtype, gates=[0.5, -1.0]).inputs()
    arguments[5] = torch.tensor([0, 0, 10], dtype=torch.int32, device=DEVICE)  # all queries are the second sequence's
    arguments[6] = 10
    out, grad_q, grad_k, grad_v, grad_gates = run(op, grad_out, arguments)
    assert (grad_k[:4] == 0).all() and (grad_v[:4] == 0).all()
    assert all(t.isfinite().all() for t in (out, grad_q, grad_k, grad_v, grad_gates)) and (grad_k != 0).any()


def test_no_tokens_at_all(one_kernel):
    op, dtype = one_kernel
    grad_out, arguments = Case((0, 0), dtype=dtype, gates=[0.5, -1.0]).inputs()
    out, grad_q, *_, grad_gates = run(op, grad_out, arguments)
    assert out.shape == grad_q.shape == (0, 2, 32) and grad_gates.tolist() == [0.0, 0.0]


def test_a_gate_of_zero_gets_its_gradient(one_kernel):
    op, dtype = one_kernel
    case = Case((20, 9), dtype=dtype, gates=[0.0, 1.0], p=0.2)
    results = run(op, *case.inputs())
    case.check(results)
    assert results[0][:, 0].count_nonzero() == 0 and results[4][0] != 0


@pytest.mark.parametrize("zero", [True, False])
def test_pruned_heads_are_neither_read_nor_computed(one_kernel, zero):
    op, dtype = one_kernel
    case = Case((30, 6), heads=3, dtype=dtype, mask=[True, False, True], gates=[0.5, 2.0, -1.0], p=0.2)
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
        assert all((t[:, 1] == 7.0).all() for t in grads)
        for t in (out, *grads):
            t[:, 1] = 0.0
    case.check((out, *results))


@pytest.mark.parametrize("shift", [0, 1])  # of every value's place in memory
def test_strided_views_are_taken_and_written(one_kernel, shift):
    op, dtype = one_kernel
    case = Case((18, 4), dtype=dtype, gates=[0.5, -1.0], p=0.1)
    grad_out, arguments = case.inputs()
    expected = run(op, grad_out, arguments)
    shape = (*arguments[0].shape[:2], 3, arguments[0].shape[2])
    packed, grad_packed = (
        torch.full((torch.Size(shape).numel() + shift,), float("nan"), dtype=dtype, device=DEVICE)[shift:].view(shape)
        for _ in range(2)
    )
    packed.copy_(torch.stack(arguments[:3], dim=2))
    arguments[:3] = packed.unbind(2)
    turned = grad_out.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    results = run(op, turned, arguments, grads=grad_packed.unbind(2))
    for i, (ours, theirs) in enumerate(zip(results, expected, strict=True)):
        assert torch.equal(ours, theirs), i
        assert i not in (1, 2, 3) or torch.equal(ours, grad_packed[:, :, i - 1])


def test_repeated_runs_are_equal(one_kernel):
    op, dtype = one_kernel
    grad_out, arguments = Case((50, 33), dtype=dtype, gates=[0.5, -1.0], p=0.2).inputs()
    for ours, theirs in zip(run(op, grad_out, arguments), run(op, grad_out, arguments), strict=True):
        assert torch.equal(ours, theirs)


def test_the_logsumexp_is_that_of_the_scaled_scores(one_kernel):
    op, dtype = one_kernel
    case = Case((9, 4), dtype=dtype, gates=[3.0, 1.0], p=0.5)
    _, arguments = case.inputs()
    arguments[-2] = -0.7  # a scale may be negative
    _, logsumexp = op.forward(*arguments)
    q, k, _ = case.qkv
    first, second = (torch.einsum("qhd,khd->hqk", q[rows], k[rows]) * -0.7 for rows in (slice(9), slice(9, 13)))
    expected = torch.cat([first.logsumexp(2), second.logsumexp(2)], dim=1)
    torch.testing.assert_close(logsumexp.cpu().double(), expected, rtol=2e-6, atol=2e-6)


def test_a_bound_far_above_the_lengths_changes_nothing(one_kernel):
    op, dtype = one_kernel
    grad_out, arguments = Case((9, 4), dtype=dtype).inputs()
    expected = run(op, grad_out, arguments)
    arguments[4] = arguments[6] = 1 << 40
    for ours, theirs in zip(run(op, grad_out, arguments), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
