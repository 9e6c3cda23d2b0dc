"""Triton's interpreter as these tests use it."""

import pytest
import torch

tl = pytest.importorskip("triton.language")

import triton  # noqa: E402

from earlybert_kernels.backends import triton as backend  # noqa: E402

if not backend.INTERPRETED:
    pytest.skip("Triton's interpreter is off: a GPU is there", allow_module_level=True)


@triton.jit(do_not_specialize=["begin", "end"])
def _counts(out, begin, end):
    total = 0
    for _ in range(max(begin, tl.program_id(0)), min(end, 100)):
        total += 1
    tl.store(out, total)


def test_loops_run_to_what_a_kernel_was_given():
    out = torch.zeros(1, dtype=torch.int32)
    _counts[(1,)](out, 3, 10)
    assert out.item() == 7
