"""LAMB's kernels: dtypes, sizes, views, many tensors, and numbers that only the device knows."""

from __future__ import annotations

import pytest
import torch
from accuracy import assert_as_exact_as_pytorch

import earlybert_kernels as ek
from earlybert_kernels import reference
from earlybert_kernels.backends import triton

if triton.unavailable() is not None:
    pytest.skip(f"triton: {triton.unavailable()}", allow_module_level=True)

from earlybert_kernels.backends.triton import lamb_step as ours
from earlybert_kernels.backends.triton.launch import recording

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPTIONS = {"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.1}
STEPS = 2
SHAPES = [(), (3,), (0,), (511,), (513,), (3, 5, 7), (8192,), (8193,)]


def aligned(tensor):
    return tensor.clone()


def misaligned(tensor):
    """The same numbers behind an address that no wide load can take."""
    return tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)


def with_gaps(tensor):
    return torch.stack([tensor, tensor], -1).select(-1, 0)


def problem():
    """Parameters, which keep their sign, and gradients; some of each are 0."""
    params = [torch.randn(shape) for shape in SHAPES]
    params = [param + param.sign() for param in params] + [torch.zeros(70), torch.randn(70), torch.zeros(5)]
    grads = [[torch.randn_like(param) for param in params] for _ in range(STEPS)]
    for of_step in grads:
        of_step[-2:] = torch.zeros(70), torch.zeros(5)
    return params, grads


def stepped(step, params, grads_of_steps, numbers=float, view=aligned, **options):
    """The parameters and their moments after the steps, which are given `view` of every tensor.

    `numbers` makes step counts and learning rate.
    """
    moments = [torch.zeros_like(param, dtype=torch.promote_types(param.dtype, torch.float32)) for param in params]
    params, exp_avgs, exp_avg_sqs = ([view(t) for t in tensors] for tensors in (params, moments, moments))
    for count, grads in enumerate(grads_of_steps, start=1):
        grads = [view(grad) for grad in grads]
        counts = [numbers(float(count + index % 4)) for index in range(len(params))]
        step(params, grads, exp_avgs, exp_avg_sqs, counts, lr=numbers(1e-2), **OPTIONS, **options)
    return [t.cpu() for t in params], [t.cpu() for t in exp_avgs + exp_avg_sqs]


def on_device(number):
    return torch.tensor(number, device=DEVICE)


@pytest.mark.parametrize(
    ("dtypes", "view"),
    [
        ((torch.float32, torch.float32), aligned),
        ((torch.bfloat16, torch.bfloat16), aligned),
        ((torch.float32, torch.float32), misaligned),
        ((torch.float16, torch.float32), with_gaps),
    ],
)
@pytest.mark.parametrize(("adapt", "l1"), [(True, 0.0), (False, 0.3)])
def test_the_kernels_are_as_exact_as_pytorch(dtypes, view, adapt, l1):
    params, grads = problem()
    params = [param.to(dtypes[0]) for param in params]
    grads = [[grad.to(dtypes[1]) for grad in of_step] for of_step in grads]
    options = {"adapt": adapt, "l1": l1}
    plain = stepped(reference.lamb_step, params, grads, **options)
    wide = [param.double() for param in params], [[grad.double() for grad in of_step] for of_step in grads]
    truth = stepped(reference.lamb_step, *wide, **options)
    here = [param.to(DEVICE) for param in params], [[grad.to(DEVICE) for grad in of_step] for of_step in grads]
    results = stepped(ours.lamb_step, *here, numbers=on_device, view=view, **options)
    for mine, theirs, exact, dtype in zip(results, plain, truth, (dtypes[0], torch.float32), strict=True):
        kept = [each for each in zip(mine, theirs, exact, strict=True) if each[2].numel()]
        assert_as_exact_as_pytorch(*zip(*kept, strict=True), dtype=dtype)


def test_many_tensors_of_many_chunks(monkeypatch):
    """More of both than a program looks at at once."""
    monkeypatch.setattr(ours, "ROWS", 4)
    monkeypatch.setattr(ours, "BLOCK", 32)
    monkeypatch.setattr(ours, "CHUNK", 64)
    params = [torch.randn(size) for size in (1, 700, 0, 64, 63, 65, 0, 0, 129, 5, 1024, 2, 0)]
    grads = [[torch.randn_like(param) for param in params]]
    plain = stepped(reference.lamb_step, params, grads, adapt=True)
    truth = stepped(reference.lamb_step, [p.double() for p in params], [[g.double() for g in grads[0]]], adapt=True)
    here = [param.to(DEVICE) for param in params], [[grad.to(DEVICE) for grad in grads[0]]]
    results = stepped(ours.lamb_step, *here, adapt=True, l1=0.0)
    for mine, theirs, exact in zip(results, plain, truth, strict=True):
        kept = [each for each in zip(mine, theirs, exact, strict=True) if each[2].numel()]
        assert_as_exact_as_pytorch(*zip(*kept, strict=True))


@pytest.mark.parametrize("shift", [0, 1])
def test_nothing_around_a_tensor_is_touched(shift):
    for size in (1, 511, 513, 8192 + 3):
        around = [torch.full((size + 40,), 7.0, device=DEVICE) for _ in range(4)]
        params, grads, exp_avgs, exp_avg_sqs = ([t[20 + shift : 20 + shift + size]] for t in around)
        ours.lamb_step(params, grads, exp_avgs, exp_avg_sqs, [1.0], lr=0.1, adapt=True, l1=0.0, **OPTIONS)
        assert all((t[: 20 + shift] == 7).all() and (t[20 + shift + size :] == 7).all() for t in around)
        assert (grads[0] == 7).all() and not (params[0] == 7).any()


def test_numbers_of_the_host_and_of_the_device_give_the_same_bits_every_time():
    params = [torch.randn(size, device=DEVICE) for size in (8193, 33)]
    here = params, [[torch.randn_like(param) for param in params]]
    first, *others = (
        stepped(ours.lamb_step, *here, numbers=numbers, adapt=True, l1=0.1) for numbers in (float, on_device, float)
    )
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first[0] + first[1], other[0] + other[1], strict=True))


def test_numbers_that_a_graph_keeps():
    for numbers, dtype in (([2**62 + 1, -5, 0, 2**40 + 3] * 50, torch.int64), ([0.1, 1e-30, 7.0], torch.float32)):
        made = ours._as_arguments(numbers, dtype, torch.device(DEVICE))
        assert torch.equal(made.cpu(), torch.tensor(numbers, dtype=dtype))
        assert torch.equal(ours.upload(numbers, dtype, torch.device(DEVICE)).cpu(), made.cpu())


def test_four_launches_and_no_number_is_read_back():
    """A tensor on "meta" has none that could be."""
    tensors = [[torch.empty(50, 30, device="meta"), torch.empty(7, device="meta")] * 60 for _ in range(4)]
    step = torch.empty((), device="meta")
    for adapt, count in ((True, 4), (False, 2)):
        with recording(90) as launches:
            ours.lamb_step(*tensors, [step] * 120, lr=step, adapt=adapt, l1=0.0, **OPTIONS)
        assert len(launches) == count


def test_moments_that_it_does_not_take():
    half = torch.ones(3, dtype=torch.bfloat16, device=DEVICE)
    with pytest.raises(RuntimeError, match="it takes moments in float32, got torch.bfloat16"):
        ek.ops.lamb_step(*[[half]] * 4, [1.0], lr=0.1, adapt=True, backend="triton", **OPTIONS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_of_the_optimizer_goes_on():
    """Replays count steps, take the gradients and the learning rate that they find, and do what calls would do."""
    shapes = [(33, 65), (65,), (10007,)]
    captured, called = ([torch.nn.Parameter(torch.ones(shape, device="cuda")) for shape in shapes] for _ in range(2))
    rates = [torch.tensor(0.1, device="cuda") for _ in range(2)]
    optimizers = [ek.Lamb(params, lr=lr, l1=0.01) for params, lr in zip((captured, called), rates, strict=True)]
    generator = torch.Generator("cuda").manual_seed(0)

    def prepare(step):
        for a, b in zip(captured, called, strict=True):
            b.grad = torch.randn(b.shape, device="cuda", generator=generator)
            a.grad = b.grad.clone() if a.grad is None else a.grad.copy_(b.grad)
        for rate in rates:
            rate.fill_(0.1 / (1 + step))

    prepare(0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        optimizers[0].step()  # makes the state and compiles the kernels
    torch.cuda.current_stream().wait_stream(side)
    optimizers[1].step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizers[0].step()
    for step in range(1, 5):
        prepare(step)
        graph.replay()
        optimizers[1].step()
        assert all(torch.equal(a, b) for a, b in zip(captured, called, strict=True))
    assert all(optimizers[0].state[param]["step"].item() == 5 for param in captured)
