"""Dropping padding and putting it back, by plain PyTorch and by CUDA's kernels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import earlybert_kernels as ek
from earlybert_kernels.backends import cuda
from tests.helpers.guarded import Guarded
from tests.helpers.targets import targets_of

TARGETS = [pytest.param(target, id=target.backend) for target in targets_of("unpad")]
CUDA = [target for target in targets_of("unpad") if target.backend == "cuda"]
needs_cuda = pytest.mark.skipif(not CUDA, reason=f"cuda: {cuda.unavailable()}")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)


def numbers(shape, dtype, device):
    """Non-zero values, but for bool."""
    return torch.randint(1, 100, shape, device=device).remainder(2 if dtype == torch.bool else 101).to(dtype)


def places(mask):
    return mask.reshape(-1).nonzero().squeeze(1)


@pytest.fixture
def fresh_memory_is_poisoned():
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@st.composite
def batches(draw):
    """A mask `(B, S)` of sequences that may be empty, or of tokens anywhere, and dtypes and row shapes of tensors."""
    batch, seq = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    if draw(st.booleans()):
        lengths = draw(st.lists(st.integers(0, seq), min_size=batch, max_size=batch))
        mask = torch.arange(seq) < torch.tensor(lengths)[:, None]
    else:
        mask = torch.tensor(draw(st.lists(st.booleans(), min_size=batch * seq, max_size=batch * seq)))
    rows = st.sampled_from([(), (1,), (3,), (8,), (3, 5), (64,), (67,), (0,)])
    kinds = draw(st.lists(st.tuples(rows, st.sampled_from(DTYPES)), min_size=1, max_size=4))
    return mask.view(batch, seq), kinds


@pytest.mark.usefixtures("fresh_memory_is_poisoned")
@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(drawn=batches())
def test_any_tokens_of_any_tensors(target, drawn):
    mask, kinds = drawn
    mask = mask.to(target.device)
    index = places(mask)
    padded = [numbers((*mask.shape, *row), dtype, target.device) for row, dtype in kinds]
    packed = ek.ops.unpad(padded, index, backend=target.backend)
    for ours, whole in zip(packed, padded, strict=True):
        assert ours.dtype == whole.dtype
        assert torch.equal(ours, whole[mask])
    again = ek.ops.pad(packed, index, *mask.shape, backend=target.backend)
    for ours, part, whole in zip(again, packed, padded, strict=True):
        expected = torch.zeros_like(whole)
        expected[mask] = part
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("target", TARGETS)
def test_many_tensors_and_long_batches(target):
    mask = torch.arange(300, device=target.device) < torch.tensor([300, 0, 17], device=target.device)[:, None]
    padded = [numbers((3, 300, 1 + i % 3), torch.float16, target.device) for i in range(19)]
    packed = ek.ops.unpad(padded, places(mask), backend=target.backend)
    assert all(torch.equal(ours, whole[mask]) for ours, whole in zip(packed, padded, strict=True))
    again = ek.ops.pad(packed, places(mask), 3, 300, backend=target.backend)
    assert all(torch.equal(ours, whole * mask[..., None]) for ours, whole in zip(again, padded, strict=True))
    assert ek.ops.unpad([], places(mask)) == ek.ops.pad([], places(mask), 3, 300) == ()


@pytest.mark.parametrize("target", TARGETS)
def test_memory_layouts(target):
    index = torch.tensor([0, 3, 4, 9, 11], device=target.device)
    plain = numbers((3, 4, 6), torch.float32, target.device)
    views = [
        plain.transpose(0, 1).contiguous().transpose(0, 1),
        plain.repeat_interleave(2, -1)[..., ::2],
        torch.empty(plain.numel() + 1, device=target.device)[1:].view(plain.shape).copy_(plain),
        torch.cat([plain, plain], 2)[..., :6],
    ]
    expected = plain.view(12, 6)[index]
    assert all(torch.equal(ours, expected) for ours in ek.ops.unpad(views, index, backend=target.backend))
    (positions,) = ek.ops.unpad([torch.arange(4, device=target.device).expand(3, 4)], index, backend=target.backend)
    assert torch.equal(positions, index % 4)
    flipped = expected.t().contiguous().t()
    ours, theirs = (ek.ops.pad([t], index, 3, 4, backend=target.backend)[0] for t in (flipped, expected))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("target", TARGETS)
def test_gradients(target):
    index = torch.tensor([1, 2, 5], device=target.device)
    ids = torch.arange(6, device=target.device).view(2, 3)
    options = {"dtype": torch.float64, "device": target.device, "requires_grad": True}
    a, b = torch.randn(2, 3, 4, **options), torch.randn(2, 3, **options)

    def unpad(a, b):
        first, numbers, second = ek.ops.unpad([a, ids, b], index, backend=target.backend)
        assert not numbers.requires_grad
        return first, second

    assert torch.autograd.gradcheck(unpad, (a, b))
    (unused,) = torch.autograd.grad(unpad(a, b)[1].sum(), a, allow_unused=True)
    assert unused is None or not unused.any()
    x, y = torch.randn(3, 4, **options), torch.randn(3, **options)
    assert torch.autograd.gradcheck(lambda *t: ek.ops.pad(t, index, 2, 3, backend=target.backend), (x, y))


@needs_cuda
@pytest.mark.parametrize("op", ["unpad", "pad"])
def test_opcheck(op):
    index = torch.tensor([1, 2, 5], device=CUDA[0].device)
    shapes = [(2, 3, 4), (2, 3)] if op == "unpad" else [(3, 4), (3,)]
    tensors = [torch.randn(shape, device=CUDA[0].device, requires_grad=True) for shape in shapes]
    torch.library.opcheck(getattr(torch.ops.earlybert, op).cuda, (tensors, index, 2, 3))


@needs_cuda
def test_writes_every_value_and_none_beside_them(monkeypatch):
    index = torch.tensor([1, 2, 5, 6, 13], device=CUDA[0].device)
    padded = [torch.randn(2, 7, 5, device=CUDA[0].device), torch.randn(2, 7, 8, device=CUDA[0].device).half()]
    guarded = Guarded(monkeypatch)
    cuda.padding.pad(cuda.padding.unpad(padded, index, 2, 7), index, 2, 7)
    guarded.check(4)


@needs_cuda
def test_a_place_outside_the_batch_reads_nothing():
    index = torch.tensor([-1, 2, 6, 1 << 40], device=CUDA[0].device)
    x = torch.arange(1, 7, device=CUDA[0].device).view(2, 3)
    assert cuda.padding.unpad([x], index, 2, 3)[0].tolist() == [0, 3, 0, 0]


@needs_cuda
def test_compiles_into_one_graph():
    index = torch.tensor([0, 1, 3], device=CUDA[0].device)

    def double(x):
        return 2 * ek.ops.pad(ek.ops.unpad([x], index, backend="cuda"), index, 2, 2, backend="cuda")[0]

    compiled = torch.compile(double, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 2, 3, device=CUDA[0].device, requires_grad=True)
    ours, theirs = ((out := run(x), torch.autograd.grad(out.sum(), x)[0]) for run in (compiled, double))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_plain_pytorch_stands_in_for_backends_without_a_kernel():
    x, index = torch.randn(2, 3), torch.tensor([0, 1, 4])
    for backend in ("cpu", "triton"):
        with ek.use_backend(backend):
            assert torch.equal(ek.ops.unpad([x], index)[0], x.view(-1)[index])
        with pytest.raises(RuntimeError, match=f"it has no '{backend}' implementation"):
            ek.ops.unpad([x], index, backend=backend)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, i: ek.ops.unpad([x, x[:1]], i), ValueError, r"shape \(1, 3\), expected .*as the first, \(2, 3\)"),
        (lambda x, i: ek.ops.unpad([x[0]], i), ValueError, r"shape \(3,\), expected \(B, S, ...\)"),
        (lambda x, i: ek.ops.unpad([x], i.int()), TypeError, "index is torch.int32, expected torch.int64"),
        (lambda x, i: ek.ops.unpad([x], i[None]), ValueError, "index has shape"),
        (lambda x, i: ek.ops.unpad([x], i + 2), ValueError, "unpad: index has to rise .* to at most 5"),
        (lambda x, i: ek.ops.unpad([x], i - 1), ValueError, "unpad: index has to rise .* from 0 or more"),
        (lambda x, i: ek.ops.pad([x[0]], i.flip(0), 2, 3), ValueError, "pad: index has to rise"),
        (lambda x, i: ek.ops.pad([x], i, 2, 3), ValueError, r"shape \(2, 3\), expected \(T, ...\)"),
        (lambda x, i: ek.ops.pad([x[0].to("meta")], i, 2, 3), ValueError, "one device"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.randn(2, 3), torch.tensor([0, 1, 4]))
