"""Fixtures of the tests of compiled backends."""

import pytest
from mended_interpreter import mend_bfloat16
from targets import Target, device_of

from earlybert_kernels.backends import cpu, cuda, triton

ISAS = [] if cpu.extension is None else cpu.extension.instruction_sets()

if triton.INTERPRETED:
    mend_bfloat16()


@pytest.fixture(params=ISAS)
def isa(request):
    """Each instruction set that the processor has, in turn."""
    best = cpu.extension.instruction_set()
    cpu.extension.use_instruction_set(request.param)
    yield request.param
    cpu.extension.use_instruction_set(best)


@pytest.fixture(params=[*ISAS, "triton", "cuda"])
def target(request):
    """Each compiled backend in turn, the CPU's with each of its instruction sets."""
    if request.param in ("triton", "cuda"):
        reason = {"triton": triton, "cuda": cuda}[request.param].unavailable()
        if reason is not None:
            pytest.skip(f"{request.param}: {reason}")
        yield Target(request.param, device_of(request.param))
        return
    best = cpu.extension.instruction_set()
    cpu.extension.use_instruction_set(request.param)
    yield Target("cpu", "cpu")
    cpu.extension.use_instruction_set(best)
