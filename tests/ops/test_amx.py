"""AMX's products of bfloat16, by what stands in for the instruction: bit by bit what its definition says.

The definition is that of TDPBF16PS in Intel's Software Developer's Manual. Nothing here needs the instruction, and
nothing shows that a processor keeps to it; on one that has it, test_bfloat16.py multiplies with it.
"""

import numpy as np
import pytest
import torch

from earlybert_kernels.backends import cpu
from tests.ops.conftest import BFLOAT16_SETS, _use_instruction_set

EMULATED = "amx_bf16_emulated"
pytestmark = pytest.mark.skipif(EMULATED not in BFLOAT16_SETS, reason="needs the CPU extension and AVX512-BF16")

#: Tokens, in, out: a register has 16 rows, 32 numbers along what is summed, and 16 columns; a tile is two by two.
SHAPES = [(1, 1, 1), (3, 5, 7), (16, 32, 16), (32, 64, 32), (17, 33, 31), (45, 70, 65), (70, 512, 40), (29, 600, 64)]
SMALLEST = np.float64(2.0**-126)


def flushed(x):
    """float32 with subnormal numbers as 0."""
    return np.where(np.abs(x) < SMALLEST, np.float32(0.0), x)


def add_once_rounded(a, b):
    """The float32 next to a + b, of float64 numbers that may have more digits together than a float64 has.

    float64 addition, then its last digit set where it is not exact (rounding to odd), so that the second rounding is as
    one of the exact sum would be. Below the smallest normal number the result is 0.
    """
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)
    inexact = np.isfinite(total) & (error != 0) & (total.view(np.int64) % 2 == 0)
    towards = np.where(error > 0, np.inf, -np.inf)
    total = np.where(inexact, np.nextafter(total, towards), total)
    return np.where(np.abs(total) < SMALLEST * (1 - 2.0**-25), np.float32(0.0), total.astype(np.float32))


def tdpbf16ps(c, a, b):
    """c (M, N) + a (M, 32) b (32, N): even and odd neighbours apart, from 0, then together, then to c."""
    halves = []
    for first in (0, 1):
        total = np.zeros(c.shape, np.float32)
        for k in range(first, 32, 2):
            product = a[:, k, None].astype(np.float64) * b[None, k].astype(np.float64)  # exact
            total = add_once_rounded(total.astype(np.float64), product)
        halves.append(total.astype(np.float64))
    return add_once_rounded(flushed(c).astype(np.float64), add_once_rounded(*halves).astype(np.float64))


def defined(x, weight):
    """x weight^T, both bfloat16 in float32."""
    depth = -(-x.shape[1] // 32) * 32
    a, b = (flushed(np.pad(m, ((0, 0), (0, depth - m.shape[1])))) for m in (x, weight))
    c = np.zeros((len(x), len(weight)), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(0, depth, 32):
            c = tdpbf16ps(c, a[:, k : k + 32], b.T[k : k + 32])
    return c


def assert_same_bits(x, weight):
    """x: bfloat16, whose subnormal numbers nothing takes out but the instruction."""
    kept = cpu.linear.Kept(weight, bfloat16=True)
    with _use_instruction_set(EMULATED):
        ours = cpu.linear.forward(x, kept, None)[0].numpy()
    assert np.float32(1e-39) * np.float32(1.0) != 0  # the thread's own arithmetic is as it was
    theirs = defined(x.float().numpy(), weight.bfloat16().float().numpy())
    np.testing.assert_array_equal(ours, theirs)  # takes a NaN for another
    return theirs


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_software_form_is_what_the_definition_says(shape):
    tokens, size, out = shape
    assert_same_bits(torch.randn(tokens, size).bfloat16(), torch.randn(out, size))


def test_what_decides_whether_a_processor_has_it_takes_the_definition():
    assert cpu.extension.emulated_amx_multiplies()


def test_numbers_far_apart_subnormal_and_without_end():
    """Sums that lose most digits of what is added, or all; results around the smallest number; inf and NaN."""
    x, weight = torch.randn(40, 96), torch.randn(48, 96)
    x[:16] *= 2.0 ** torch.randint(-40, 40, (16, 96))
    x[16:24] *= 2.0 ** torch.randint(-130, -110, (8, 96))  # some of them subnormal
    x[24:32] *= 2.0**-60
    weight[:16] *= 2.0 ** torch.arange(-60.0, -76.0, -1.0)[:, None]
    x[33, 5], x[34, 6], x[35, 7], x[35, 8], x[36] = torch.inf, torch.nan, 3e38, -3e38, 3e38
    y = assert_same_bits(x.bfloat16(), weight)
    assert (x[16:24].bfloat16().abs() < SMALLEST).any()
    small = np.abs(y[24:32])
    assert ((small > 0) & (small < 8 * SMALLEST)).any() and (small == 0).any()
    assert np.isnan(y[34]).all() and np.isinf(y[36]).any()


def test_it_sums_in_an_order_of_its_own():
    """Even and odd neighbours apart: of 1, 2^-24 and 2^-24 the small ones meet before the large one."""
    x = torch.zeros(1, 32)
    x[0, 0], x[0, 1], x[0, 3] = 1.0, 2.0**-24, 2.0**-24
    assert assert_same_bits(x.bfloat16(), torch.ones(1, 32)) == 1 + 2.0**-23
    with _use_instruction_set("avx512_bf16"):
        assert cpu.linear.forward(x, cpu.linear.Kept(torch.ones(1, 32), bfloat16=True), None)[0] == 1
