"""Fixtures of the tests of compiled backends."""

import pytest
import torch
from targets import Target

from earlybert_kernels.backends import cpu, triton

ISAS = [] if cpu.extension is None else cpu.extension.instruction_sets()


@pytest.fixture(params=ISAS)
def isa(request):
    """Each instruction set that the processor has, in turn."""
    best = cpu.extension.instruction_set()
    cpu.extension.use_instruction_set(request.param)
    yield request.param
    cpu.extension.use_instruction_set(best)


@pytest.fixture(params=[*ISAS, "triton"])
def target(request):
    """Each compiled backend in turn, the CPU's with each of its instruction sets."""
    if request.param == "triton":
        if triton.unavailable() is not None:
            pytest.skip(f"triton: {triton.unavailable()}")
        yield Target("triton", "cuda" if torch.cuda.is_available() else "cpu")
        return
    best = cpu.extension.instruction_set()
    cpu.extension.use_instruction_set(request.param)
    yield Target("cpu", "cpu")
    cpu.extension.use_instruction_set(best)
