"""The optimizers' kernels: dtypes, sizes, views, many tensors, and numbers that only the device knows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import earlybert_kernels as ek
from earlybert_kernels.backends import cuda
from tests.helpers.optimizer_problems import OPTIONS, aligned, assert_exact, misaligned, problem, stepped, with_gaps

if cuda.unavailable() is not None:
    pytest.skip(f"cuda: {cuda.unavailable()}", allow_module_level=True)

from earlybert_kernels.backends.cuda.optimizer_step import optimizer_step

DEVICE = "cpu" if cuda.EMULATED else "cuda"
CHUNK = 16384
SHAPES = [(), (3,), (0,), (511,), (513,), (3, 5, 7), (1843,), (CHUNK - 1,), (CHUNK,), (CHUNK + 5,)]


def on_device(number):
    return torch.tensor(number, device=DEVICE)


def test_the_size_of_a_chunk():
    assert [cuda.extension.optimizer_step_chunks(size) for size in (0, 1, CHUNK, CHUNK + 1)] == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("dtypes", "view"),
    [
        ((torch.float32, torch.float32), aligned),
        ((torch.float32, torch.float32), misaligned),
        ((torch.float32, torch.bfloat16), aligned),
        ((torch.bfloat16, torch.bfloat16), aligned),
        ((torch.bfloat16, torch.float32), misaligned),
        ((torch.float16, torch.float16), misaligned),
        ((torch.float16, torch.float32), with_gaps),
    ],
)
@pytest.mark.parametrize("options", [{"adapt": True, "l1": 0.0}, {"adapt": False, "l1": 0.3, "grad_factor": 0.4}])
def test_the_kernels_are_as_exact_as_pytorch(dtypes, view, options):
    params, grads = problem(SHAPES)
    params = [param.to(dtypes[0]) for param in params]
    grads = [[grad.to(dtypes[1]) for grad in of_step] for of_step in grads]
    assert_exact(optimizer_step, params, grads, DEVICE, numbers=on_device, view=view, **options)


@pytest.mark.parametrize("count", [60, 61, 131])
@pytest.mark.parametrize("adapt", [True, False])
def test_more_tensors_than_a_launch_takes(adapt, count):
    """Those of several chunks and those without numbers stand where launches end as well."""
    sizes = [(5, 0, 2 * CHUNK + 3, 70)[(index + index // 60) % 4 if index % 12 < 2 else 3] for index in range(count)]
    params = [torch.randn(size) for size in sizes]
    grads = [[torch.randn_like(param) for param in params]]
    assert_exact(optimizer_step, params, grads, DEVICE, adapt=adapt, l1=0.0)


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=70),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.booleans(),
    st.sampled_from([0.0, 0.2]),
    st.integers(0, 9),
)
def test_any_lists_of_tensors(sizes, dtype, adapt, l1, seed):
    generator = torch.Generator().manual_seed(seed)
    params = [torch.randn(size, generator=generator) for size in sizes]
    params = [(param + param.sign()).to(dtype) for param in params]
    grads = [[torch.randn(size, generator=generator).to(dtype) for size in sizes]]
    assert_exact(optimizer_step, params, grads, DEVICE, adapt=adapt, l1=l1, grad_factor=1.0 - l1)


@pytest.mark.parametrize("shift", [0, 1])
def test_nothing_around_a_tensor_is_touched(shift):
    for size in (1, 2, 3, 4, 5, 1023, 1025, CHUNK + 3):
        around = [torch.full((size + 40,), 7.0, device=DEVICE) for _ in range(4)]
        params, grads, exp_avgs, exp_avg_sqs = ([t[20 + shift : 20 + shift + size]] for t in around)
        optimizer_step(params, grads, exp_avgs, exp_avg_sqs, [1.0], lr=0.1, adapt=True, l1=0.0, **OPTIONS)
        assert all((t[: 20 + shift] == 7).all() and (t[20 + shift + size :] == 7).all() for t in around)
        assert (grads[0] == 7).all() and not (params[0] == 7).any()


def test_numbers_of_the_host_and_of_the_device_give_the_same_bits_every_time():
    params = [torch.randn(size, device=DEVICE) for size in (3 * CHUNK + 1, 33)]
    here = params, [[torch.randn_like(param) for param in params]]
    first, *others = (
        stepped(optimizer_step, *here, numbers=numbers, adapt=True, l1=0.1, grad_factor=0.3)
        for numbers in (float, on_device, float)
    )
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first[0] + first[1], other[0] + other[1], strict=True))


@pytest.mark.parametrize("step", [1.0, 7.0, 1e6])
def test_the_bias_of_long_memories_is_taken_out(step):
    """Of constant gradients both estimates are the gradient itself, whatever the step."""
    betas = (0.0, 0.99999)
    grad = torch.full((40,), 0.3, device=DEVICE)
    moments = (grad * (1 - betas[0] ** step), grad**2 * (1 - betas[1] ** step))
    param = torch.zeros(40, device=DEVICE)
    before = [((moment - (1 - beta) * g) / beta if beta else torch.zeros_like(moment))
              for moment, beta, g in zip(moments, betas, (grad, grad**2), strict=True)]  # fmt: skip
    options = {"betas": betas, "eps": 1e-12, "weight_decay": 0.0, "adapt": False, "l1": 0.0}
    optimizer_step([param], [grad], *([moment] for moment in before), [step], lr=1.0, **options)
    torch.testing.assert_close(param, torch.full_like(param, -1.0), rtol=1e-5, atol=0.0)


def test_nothing_to_do():
    empty = torch.ones(0, device=DEVICE)
    for adapt in (True, False):
        optimizer_step([empty], [empty], [empty], [empty], [1.0], lr=0.1, adapt=adapt, l1=0.0, **OPTIONS)


def test_moments_that_it_does_not_take():
    half = torch.ones(3, dtype=torch.bfloat16, device=DEVICE)
    with pytest.raises(RuntimeError, match="it takes moments in float32, got torch.bfloat16"):
        ek.ops.optimizer_step(*[[half]] * 4, [1.0], lr=0.1, adapt=True, backend="cuda", **OPTIONS)
