"""Chosen units of many tensors: bit by bit what the definition gathers, and the gradients of both."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import earlybert_kernels as ek
from earlybert_kernels.backends import cuda
from tests.helpers.guarded import Guarded
from tests.helpers.targets import device_of, targets_of

TARGETS = pytest.mark.parametrize("target", targets_of("gather_units"), ids=lambda target: target.backend)
NEEDS_CUDA = pytest.mark.skipif(cuda.unavailable() is not None, reason=f"cuda: {cuda.unavailable()}")
DEVICE = device_of("cuda")

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
DTYPES = (*FLOATS, torch.uint8, torch.bool, torch.int16, torch.int32, torch.int64, torch.complex64)


def numbers(shape, dtype, offset=0):
    """Random ones, all different from 0, which begin `offset` elements behind an aligned address."""
    buffer = torch.empty(shape.numel() + offset, dtype=dtype)
    random = torch.rand(shape) + 0.5
    values = random if dtype.is_floating_point or dtype.is_complex else random.mul(100)
    return buffer[offset:].view(shape).copy_(values.to(dtype))


@st.composite
def problems(draw, dtypes=DTYPES, most=5):
    """Lists of tensors, units, dims, sizes and gates."""
    torch.manual_seed(draw(st.integers(0, 10**6)))
    tensors, units, dims, sizes, gates = [], [], [], [], []
    for _ in range(draw(st.integers(1, most))):
        dtype, total = draw(st.sampled_from(dtypes)), draw(st.integers(1, 40))
        size, dim = draw(st.sampled_from((1, 1, 2, 4, 7, 16))), draw(st.integers(0, 2))
        before, behind = draw(st.sampled_from((1, 3, 9, 70))), draw(st.sampled_from((1, 2, 5, 8)))
        shape = [before, *[1] * (dim - 1)][:dim] + [total * size] + [behind] * draw(st.booleans())
        offset = draw(st.sampled_from((0, 0, 1, 3)))
        tensors.append(numbers(torch.Size(shape), dtype, offset))
        kept = draw(st.sampled_from(("all", "none", "one", "some", "unsorted", "every one")))
        order = torch.randperm(total)
        count = {"none": 0, "one": 1, "every one": total}.get(kept, int(torch.randint(0, total + 1, ())))
        chosen = order[:count] if kept in ("one", "unsorted", "every one") else order[:count].sort().values
        units.append(None if kept == "all" else chosen)
        dims.append(draw(st.sampled_from((dim, dim - len(shape)))))
        sizes.append(size)
        gated = dtype in FLOATS and draw(st.booleans())
        gates.append(torch.randn(total) if gated else None)
    return tensors, units, dims, sizes, gates


def on(device, problem):
    """The problem, on a device."""
    tensors, units, dims, sizes, gates = problem

    def moved(given):
        return [None if tensor is None else tensor.to(device) for tensor in given]

    return moved(tensors), moved(units), dims, sizes, moved(gates)


def gathered(backend, tensors, units, dims, sizes, gates):
    return ek.ops.gather_units(tensors, units, dims, sizes=sizes, gates=gates, backend=backend)


def naive(tensor, units, dim, size, gates):
    """One unit after the other."""
    total = tensor.shape[dim] // size
    chosen = range(total) if units is None else units.tolist()
    parts = [tensor.narrow(dim, unit * size, size) for unit in chosen]
    if gates is not None:
        parts = [(part.float() * gates[unit]).to(part.dtype) for part, unit in zip(parts, chosen, strict=True)]
    return torch.cat(parts, dim) if parts else tensor.narrow(dim, 0, 0)


@TARGETS
@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_every_unit_is_where_it_belongs(target, problem):
    expected = [naive(*arguments) for arguments in zip(*problem, strict=True)]
    results = gathered(target.backend, *on(target.device, problem))
    for ours, exact in zip(results, expected, strict=True):
        assert ours.is_contiguous() and ours.dtype == exact.dtype and torch.equal(ours.cpu(), exact)


@NEEDS_CUDA
@settings(max_examples=60, deadline=None)
@given(problem=problems(FLOATS))
def test_results_are_written_whole_and_nothing_beside_them(problem):
    tensors, units, dims, sizes, gates = on(DEVICE, problem)
    dims = [dim % tensor.dim() for tensor, dim in zip(tensors, dims, strict=True)]
    weights = [None if own is None else tensor for tensor, own in zip(tensors, gates, strict=True)]
    shapes = [tensor.shape for tensor in tensors]
    with pytest.MonkeyPatch.context() as patch:
        guarded = Guarded(patch)
        parts = cuda.gather_units.gather(tensors, units, dims, sizes, gates)
        grads = [torch.randn(part.shape).to(part) for part in parts]
        cuda.gather_units.scatter(grads, shapes, units, dims, sizes, gates, weights)
        guarded.check(2 * len(tensors) + sum(own is not None for own in gates))


@NEEDS_CUDA
@settings(max_examples=40, deadline=None)
@given(problem=problems(FLOATS))
def test_gradients_are_those_of_the_definition(problem):
    def differentiated(backend, device, dtype=None):
        tensors, units, dims, sizes, gates = on(device, problem)
        tensors = [tensor.to(dtype or tensor.dtype).requires_grad_() for tensor in tensors]
        gates = [None if own is None else own.to(dtype or own.dtype).requires_grad_() for own in gates]
        results = gathered(backend, tensors, units, dims, sizes, gates)
        generator = torch.Generator().manual_seed(3)
        grads = [
            torch.randn(r.shape, generator=generator).to(t.dtype) for r, t in zip(results, problem[0], strict=True)
        ]
        grads = [grad.to(result) for grad, result in zip(grads, results, strict=True)]
        leaves = [*tensors, *(own for own in gates if own is not None)]
        return [grad.cpu() for grad in torch.autograd.grad(results, leaves, grads)]

    ours, exact = differentiated("cuda", DEVICE), differentiated("reference", "cpu", torch.float64)
    for number, (grad, truth) in enumerate(zip(ours, exact, strict=True)):
        if number < len(problem[0]):
            assert torch.equal(grad, truth.to(torch.float32).to(grad.dtype))  # a product in float32, rounded once more
        else:  # sums of up to 70 * 16 * 8 products, each rounded
            torch.testing.assert_close(grad.double(), truth, rtol=1e-5, atol=1e-4)


@NEEDS_CUDA
@pytest.mark.parametrize("shape", [(1843,), (1025, 3), (71, 1031), (2, 9, 2100), (3, 5, 4104)])
def test_sizes_beyond_a_block(shape):
    tensor, dim = torch.randn(shape, device=DEVICE), max(len(shape) - 2, 0)
    total = shape[dim]
    units, gates = torch.randperm(total)[: total * 3 // 5].to(DEVICE), torch.randn(total, device=DEVICE)
    for own in (None, gates):
        leaves = [tensor.clone().requires_grad_() for _ in range(2)]
        pair = [
            ek.ops.gather_units([leaf], [units], [dim], gates=[own], backend=backend)[0]
            for leaf, backend in zip(leaves, ("cuda", "reference"), strict=True)
        ]
        assert torch.equal(*pair)
        grad = torch.randn_like(pair[0])
        assert torch.equal(*(torch.autograd.grad(out, leaf, grad)[0] for out, leaf in zip(pair, leaves, strict=True)))


@NEEDS_CUDA
def test_more_tensors_than_a_launch_takes():
    count = 2 * cuda.extension.GATHER_UNITS_MOST + 3
    tensors = [torch.randn(5, 1 + number % 4, device=DEVICE).requires_grad_() for number in range(count)]
    units = [torch.tensor([3, number % 3], device=DEVICE) for number in range(count)]
    ours, plain = (ek.ops.gather_units(tensors, units, [0] * count, backend=b) for b in ("cuda", "reference"))
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    loss, expected = (sum(part.square().sum() for part in parts) for parts in (ours, plain))
    for a, b in zip(torch.autograd.grad(loss, tensors), torch.autograd.grad(expected, tensors), strict=True):
        assert torch.equal(a, b)


@TARGETS
def test_only_what_is_asked_for_gets_a_gradient(target):
    used, frozen, unused = (torch.randn(4, 6, device=target.device) for _ in range(3))
    gates, units = torch.randn(3, device=target.device), torch.tensor([2, 0], device=target.device)
    for tensor in (used, unused, gates):
        tensor.requires_grad_()
    tensors, dims = [used, frozen, unused, frozen], [1, 1, 1, 0]
    parts = ek.ops.gather_units(
        tensors, [units] * 4, dims, sizes=[2, 2, 2, 1], gates=[gates, gates, None, None], backend=target.backend
    )
    (parts[0].sum() + 3 * parts[1].sum() + parts[3].sum()).backward()
    assert frozen.grad is None and unused.grad is None
    expected = used.detach().view(4, 3, 2).sum((0, 2)) + 3 * frozen.view(4, 3, 2).sum((0, 2))
    expected[1] = 0
    torch.testing.assert_close(gates.grad, expected, rtol=1e-5, atol=1e-5)
    scale = gates.detach() * torch.tensor([1.0, 0.0, 1.0], device=target.device)
    torch.testing.assert_close(used.grad, scale.repeat_interleave(2).expand(4, 6))


@TARGETS
def test_nothing_to_gather(target):
    assert ek.ops.gather_units([], [], [], backend=target.backend) == []
    empty = torch.empty(0, 3, device=target.device, requires_grad=True)
    full = torch.randn(4, 3, device=target.device, requires_grad=True)
    gates = torch.ones(4, device=target.device, requires_grad=True)
    none = torch.empty(0, dtype=torch.long, device=target.device)
    parts = ek.ops.gather_units(
        [empty, full, full], [none, none, none], [0] * 3, gates=[None, None, gates], backend=target.backend
    )
    assert [tuple(part.shape) for part in parts] == [(0, 3)] * 3
    sum(part.sum() for part in parts).backward()
    assert not full.grad.any() and not gates.grad.any() and empty.grad.shape == (0, 3)


@NEEDS_CUDA
def test_opcheck():
    w, b, gates = (torch.randn(shape, device=DEVICE).requires_grad_() for shape in ((5, 6), (6,), (3,)))
    lists = [[w, b], [torch.tensor([0, 2], device=DEVICE)], [0, -1], [gates], [0, -1], [1, 0], [2, 1]]
    torch.library.opcheck(torch.ops.earlybert.gather_units.cuda, tuple(lists))
    lists = [[t.detach() for t in each] if isinstance(each[0], torch.Tensor) else each for each in lists]
    grads = [torch.randn(5, 4, device=DEVICE), torch.randn(6, device=DEVICE)]
    torch.library.opcheck(torch.ops.earlybert.gather_units_backward.cuda, (grads, *lists))


@NEEDS_CUDA
def test_compiles_into_one_graph():
    w, gates = torch.randn(5, 6, device=DEVICE).requires_grad_(), torch.randn(3, device=DEVICE).requires_grad_()
    units = torch.tensor([2, 1], device=DEVICE)

    def loss(backend):
        parts = ek.ops.gather_units([w, w], [units, None], [1, 0], sizes=[2, 1], gates=[gates, None], backend=backend)
        return (parts[0].sin().sum() * parts[1].cos().sum()).view(())

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    pairs = [(result, *torch.autograd.grad(result, (w, gates))) for result in (compiled("cuda"), loss("reference"))]
    for ours, plain in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU, which alone captures graphs")
def test_replays_in_a_cuda_graph():
    w, units = torch.randn(40, 30, device="cuda", requires_grad=True), torch.arange(0, 30, 2, device="cuda")
    gates = torch.randn(30, device="cuda", requires_grad=True)

    def call(backend):
        (part,) = ek.ops.gather_units([w], [units], [1], gates=[gates], backend=backend)
        return part, *torch.autograd.grad(part, (w, gates), part.detach())

    call("cuda")  # a warm-up, as every capture needs
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call("cuda")
    for _ in range(2):
        with torch.no_grad():
            w.normal_()
            units.copy_(torch.randperm(30, device="cuda")[:15])
        graph.replay()
        for ours, plain in zip(results, call("reference"), strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-4)


def test_a_forced_backend_leaves_to_pytorch_what_it_cannot_run():
    tensor, units = torch.randn(4, 3, dtype=torch.float64), torch.tensor([1, 3])
    for backend in ("cuda", "triton", "cpu", "reference"):
        with ek.use_backend(backend):
            assert torch.equal(ek.ops.gather_units([tensor], [units], [0])[0], tensor[units])
    with pytest.raises(RuntimeError, match="gather_units: backend 'cpu' was asked for but cannot run"):
        ek.ops.gather_units([tensor], [units], [0], backend="cpu")


@NEEDS_CUDA
def test_what_cuda_refuses():
    units = torch.tensor([0], device=DEVICE)
    for dtype, why in ((torch.complex128, "up to 8 bytes"), (torch.float64, "float32, float16 and bfloat16")):
        with pytest.raises(RuntimeError, match=why):
            ek.ops.gather_units([torch.ones(2, dtype=dtype, device=DEVICE)], [units], [0], backend="cuda")


def test_errors_say_what_is_wrong():
    w, units = torch.randn(4, 6), torch.tensor([0, 1])
    op = ek.ops.gather_units
    for error, match, arguments, options in (
        (ValueError, "as many as each other", ([w], [units, units], [0]), {}),
        (IndexError, r"shape \(4, 6\) has no dimension 2", ([w], [units], [2]), {}),
        (ValueError, "is not made of units of 4", ([w], [units], [1]), {"sizes": [4]}),
        (ValueError, "is not made of units of 0", ([w], [units], [1]), {"sizes": [0]}),
        (TypeError, "units are torch.int32", ([w], [units.int()], [0]), {}),
        (ValueError, "one dimension", ([w], [units.view(2, 1)], [0]), {}),
        (IndexError, "units 0 to 4 of a tensor that has 4", ([w], [torch.tensor([0, 4])], [0]), {}),
        (IndexError, "units -1 to 2", ([w], [torch.tensor([2, -1])], [0]), {}),
        (TypeError, "must stay float32", ([w], [units], [0]), {"gates": [torch.ones(4).half()]}),
        (ValueError, "one entry a unit", ([w], [units], [1]), {"gates": [torch.ones(4)]}),
        (TypeError, "expected a floating dtype", ([w.long()], [units], [0]), {"gates": [torch.ones(4)]}),
        (ValueError, "on one device", ([w.to("meta")], [units], [0]), {}),
    ):
        with pytest.raises(error, match=match):
            op(*arguments, **options)
