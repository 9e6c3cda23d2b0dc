"""Fixtures of the tests of compiled backends."""

import contextlib

import pytest
import torch

from earlybert_kernels.backends import cpu, cuda, triton
from tests.helpers.guarded import poisoned_memory
from tests.helpers.targets import Target, device_of

_OWN = [] if cpu.extension is None else cpu.extension.instruction_sets()
# The sets with an instruction for bfloat16 run the same code but for products of it, which test_bfloat16.py has.
ISAS = [name for name in _OWN if not name.endswith("_bf16")]
#: Each that products of bfloat16 can be had with, also AMX's without the instruction; and those of vector instructions.
BFLOAT16_SETS = sorted([*_OWN, *([] if cpu.extension is None else cpu.extension.emulated_instruction_sets())])
VECTOR_SETS = [name for name in BFLOAT16_SETS if not name.startswith("amx")]

GPU_BACKENDS = {"triton": triton, "cuda": cuda}
#: The parameters of `target`.
TARGETS = [*ISAS, *GPU_BACKENDS]


@contextlib.contextmanager
def _use_instruction_set(name):
    """Kernels for it, on two threads, also where a worker of pytest-xdist has but one core."""
    best, threads = cpu.extension.instruction_set(), torch.get_num_threads()
    cpu.extension.use_instruction_set(name)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
    cpu.extension.use_instruction_set(best)


@pytest.fixture
def fresh_memory_is_nan():
    """What kernels leave out of their results shows."""
    with poisoned_memory():
        yield


@pytest.fixture(params=ISAS)
def isa(request):
    """Each instruction set that the processor has, in turn."""
    with _use_instruction_set(request.param):
        yield request.param


def target_on_gpu(backend):
    """Skips the test where the backend is not there."""
    reason = GPU_BACKENDS[backend].unavailable()
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    return Target(backend, device_of(backend))


@pytest.fixture(params=GPU_BACKENDS)
def gpu_target(request):
    """Each backend with kernels for GPUs in turn, which run on the CPU where there is none."""
    return target_on_gpu(request.param)


@pytest.fixture(params=TARGETS)
def target(request):
    """Each compiled backend in turn, the CPU's with each of its instruction sets."""
    if request.param in GPU_BACKENDS:
        yield target_on_gpu(request.param)
        return
    with _use_instruction_set(request.param):
        yield Target("cpu", "cpu")
