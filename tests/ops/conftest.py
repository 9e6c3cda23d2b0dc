"""Fixtures of the tests of compiled backends."""

import pytest

from earlybert_kernels.backends import cpu

ISAS = [] if cpu.extension is None else cpu.extension.instruction_sets()


@pytest.fixture(params=ISAS)
def isa(request):
    """Each instruction set that the processor has, in turn."""
    best = cpu.extension.instruction_set()
    cpu.extension.use_instruction_set(request.param)
    yield request.param
    cpu.extension.use_instruction_set(best)
