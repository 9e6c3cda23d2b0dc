"""Backends on GPUs promise the same bits in every run: sums are in a fixed order, whatever block comes first."""

from __future__ import annotations

import pytest
import torch

import earlybert_kernels as ek
from tests.helpers import examples

BACKENDS = ("cuda", "triton")
REPETITIONS = 100


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, where blocks run in an order of their own")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", examples.EXAMPLES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hundred_runs_give_the_same_bits(backend, op, dtype):
    if backend not in ek.ops.backends(op):
        pytest.skip(f"{op} has no {backend} here")
    if dtype not in examples.dtypes(op, backend):
        pytest.skip(f"{backend} does not take the example of {op} in {dtype}")
    first = examples.results(op, backend, dropout_p=0.1, device="cuda", dtype=dtype)
    for _ in range(REPETITIONS - 1):
        again = examples.results(op, backend, dropout_p=0.1, device="cuda", dtype=dtype)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(again, first, strict=True))
