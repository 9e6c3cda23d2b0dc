"""The optimizers' kernels: dtypes, sizes, views, many tensors, and numbers that only the device knows."""

from __future__ import annotations

import pytest
import torch

import earlybert_kernels as ek
from earlybert_kernels.backends import triton
from tests.helpers.optimizer_problems import OPTIONS, aligned, assert_exact, misaligned, problem, stepped, with_gaps

if triton.unavailable() is not None:
    pytest.skip(f"triton: {triton.unavailable()}", allow_module_level=True)

from earlybert_kernels.backends.triton import optimizer_step as ours
from earlybert_kernels.backends.triton.launch import recording

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(), (3,), (0,), (511,), (513,), (3, 5, 7), (8192,), (8193,)]


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
@pytest.mark.parametrize("options", [{"adapt": True, "l1": 0.0}, {"adapt": False, "l1": 0.3, "grad_factor": 0.4}])
def test_the_kernels_are_as_exact_as_pytorch(dtypes, view, options):
    params, grads = problem(SHAPES)
    params = [param.to(dtypes[0]) for param in params]
    grads = [[grad.to(dtypes[1]) for grad in of_step] for of_step in grads]
    assert_exact(ours.optimizer_step, params, grads, DEVICE, numbers=on_device, view=view, **options)


def test_many_tensors_of_many_chunks(monkeypatch):
    """More of both than a program looks at at once."""
    monkeypatch.setattr(ours, "ROWS", 4)
    monkeypatch.setattr(ours, "BLOCK", 32)
    monkeypatch.setattr(ours, "CHUNK", 64)
    params = [torch.randn(size) for size in (1, 700, 0, 64, 63, 65, 0, 0, 129, 5, 1024, 2, 0)]
    grads = [[torch.randn_like(param) for param in params]]
    assert_exact(ours.optimizer_step, params, grads, DEVICE, adapt=True, l1=0.0)


@pytest.mark.parametrize("shift", [0, 1])
def test_nothing_around_a_tensor_is_touched(shift):
    for size in (1, 511, 513, 8192 + 3):
        around = [torch.full((size + 40,), 7.0, device=DEVICE) for _ in range(4)]
        params, grads, exp_avgs, exp_avg_sqs = ([t[20 + shift : 20 + shift + size]] for t in around)
        ours.optimizer_step(params, grads, exp_avgs, exp_avg_sqs, [1.0], lr=0.1, adapt=True, l1=0.0, **OPTIONS)
        assert all((t[: 20 + shift] == 7).all() and (t[20 + shift + size :] == 7).all() for t in around)
        assert (grads[0] == 7).all() and not (params[0] == 7).any()


def test_numbers_of_the_host_and_of_the_device_give_the_same_bits_every_time():
    params = [torch.randn(size, device=DEVICE) for size in (8193, 33)]
    here = params, [[torch.randn_like(param) for param in params]]
    first, *others = (
        stepped(ours.optimizer_step, *here, numbers=numbers, adapt=True, l1=0.1, grad_factor=0.3)
        for numbers in (float, on_device, float)
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
            ours.optimizer_step(*tensors, [step] * 120, lr=step, adapt=adapt, l1=0.0, grad_factor=step, **OPTIONS)
        assert len(launches) == count


def test_moments_that_it_does_not_take():
    half = torch.ones(3, dtype=torch.bfloat16, device=DEVICE)
    with pytest.raises(RuntimeError, match="it takes moments in float32, got torch.bfloat16"):
        ek.ops.optimizer_step(*[[half]] * 4, [1.0], lr=0.1, adapt=True, backend="triton", **OPTIONS)
