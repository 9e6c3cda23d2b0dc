"""The rule by which a dropout seed keeps elements, in Python and as the CPU extension computes it."""

import itertools

import numpy as np
import pytest
import torch

from earlybert_kernels.backends import cpu
from earlybert_kernels.reference.counter_rng import keep_mask, kept_scale, philox, threshold

# Known answers for Philox-4x32, published with the generator: rounds, counter, key, words.
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
ONES = (2**32 - 1,) * 4, (2**32 - 1,) * 2
ZEROS = (0,) * 4, (0,) * 2
KNOWN_ANSWERS = [
    (7, *ZEROS, (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    (7, *ONES, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
    (7, *PI, (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A)),
    (10, *ZEROS, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (10, *ONES, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (10, *PI, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


@pytest.mark.parametrize(("rounds", "counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers(rounds, counter, key, words):
    assert philox(counter, key, rounds) == words
    as_tensors = philox([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key], rounds)
    assert tuple(int(w) for w in as_tensors) == words
    if cpu.extension is not None:
        assert cpu.extension.philox(*counter, *key, rounds) == words


def test_an_element_takes_its_own_draw():
    shape = (2, 3, 75)
    mask = keep_mask(7 + (5 << 32), shape, 0.5)
    taken = set()
    for i, (a, b, col) in enumerate(itertools.product(*map(range, shape))):
        row, group, n, c, half = a * shape[1] + b, col // 32, col % 32 // 8, col % 8 // 2, col % 2
        word = philox((4 * group + c, 0, row, 0), (7, 5), 7)[n]
        assert mask.flatten()[i] == ((word >> 16 * half) % 2**15 >= 2**14)
        taken.add((row, group, c, n, half))
    assert len(taken) == mask.numel()


def test_what_is_kept_does_not_depend_on_the_width():
    wide = keep_mask(3, (5, 200), 0.5)
    for cols in (1, 31, 32, 33, 199):
        assert torch.equal(keep_mask(3, (5, cols), 0.5), wide[:, :cols])
    assert torch.equal(keep_mask(3, (200,), 0.5), wide[0])
    assert keep_mask(3, (5, 0), 0.5).shape == (5, 0)


def test_the_high_half_of_the_seed_counts():
    assert not torch.equal(keep_mask(1, (100,), 0.5), keep_mask(1 + 2**32, (100,), 0.5))
    assert torch.equal(keep_mask(2**40 + 3, (100,), 0.5), keep_mask(torch.tensor(2**40 + 3), (100,), 0.5))
    assert keep_mask(-1, (100,), 0.5).any()  # a torch seed may have its sign bit set


def test_thresholds_are_the_nearest():
    assert [threshold(p) for p in (0.0, 0.5, 0.25, 0.1)] == [0, 2**14, 2**13, 3277]
    assert threshold(1e-5) == 0 and threshold(2e-5) == 1
    assert threshold(np.nextafter(1.0, 0.0)) == 2**15 - 1  # something is always kept
    for p in np.linspace(0.0, 1.0 - 2**-16, 1001):
        assert abs(threshold(p) / 2**15 - p) <= 2**-16


def test_the_scale_is_one_over_the_probability_that_is_applied():
    assert kept_scale(0.0) == kept_scale(1e-6) == 1.0  # which drops nothing
    assert keep_mask(1, (10_000,), 1e-6).all()
    for p in (0.1, 0.3, 0.5, 0.9, 1 - 1e-9):
        draws = torch.arange(2**15)  # each as likely as any other
        assert ((draws >= threshold(p)).double() * kept_scale(p)).mean().item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("p", [0.001, 0.01, 0.1, 0.5, 0.9])
def test_keep_rate(p):
    shape = (1000, 1000)
    kept = 1 - threshold(p) / 2**15
    mask = keep_mask(11, shape, p).double()
    deviation = (kept * (1 - kept)) ** 0.5
    assert abs(mask.mean() - kept) < 5 * deviation / 1000
    for along in (0, 1):  # and of every column and row, none of which is favoured
        assert (mask.mean(along) - kept).abs().max() < 5.5 * deviation / 1000**0.5


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_every_draw_of_a_group_is_independent_of_every_other(p):
    # Of 32 columns, and the same columns in the next row: pairs, and how many of a group are kept.
    rows = 200_000
    mask = keep_mask(5, (rows + 1, 32), p).double()
    kept = 1 - threshold(p) / 2**15
    centred = (mask - kept) / (kept * (1 - kept)) ** 0.5
    pairs = centred.T @ centred / rows**0.5
    assert (pairs - torch.diag(pairs.diag())).abs().max() < 5.5
    assert (centred[1:].T @ centred[:-1] / rows**0.5).abs().max() < 5.5
    for group in (mask, mask.view(-1, 4, 4, 2)[:, :, 0].flatten(1)):  # of a group, and of a block
        size = group.shape[1]
        counted = torch.bincount(group.sum(1).long(), minlength=size + 1)
        k = torch.arange(size + 1, dtype=torch.float64)
        logs = torch.lgamma(torch.tensor(size + 1.0)) - torch.lgamma(k + 1) - torch.lgamma(size - k + 1)
        expected = (logs + k * np.log(kept) + (size - k) * np.log1p(-kept)).exp() * len(group)
        common = expected > 20
        chi_square = ((counted - expected) ** 2 / expected)[common].sum()
        assert chi_square < common.sum() + 5 * (2 * common.sum()) ** 0.5


def test_rows_columns_heads_and_seeds_are_uncorrelated():
    heads, rows, cols, p = 4, 64, 2048, 0.3
    seeds = (0, 1, 2, 2**32, 2**63 - 1)  # every layer and step draws its own
    rate = threshold(p) / 2**15
    masks = [keep_mask(seed, (heads, rows, cols), p).double() - (1 - rate) for seed in seeds]
    variance = rate * (1 - rate)

    def correlation(a, b):
        return ((a * b).mean() / variance).abs().item() * a.numel() ** 0.5  # in sigmas

    mask = masks[0]
    assert correlation(mask[:, 1:], mask[:, :-1]) < 5
    assert correlation(mask[1:], mask[:-1]) < 5
    for lag in (1, 2, 3, 4, 6, 8, 16, 24, 32, 64):
        assert correlation(mask[..., lag:], mask[..., :-lag]) < 5
    for a, b in itertools.combinations(masks, 2):
        assert correlation(a, b) < 5


def test_rows_beyond_32_bits_differ():
    counters = [(0, row >> 32, row % 2**32, 0) for row in (5, 5 + 2**32)]
    assert philox(counters[0], (1, 2)) != philox(counters[1], (1, 2))


@pytest.mark.skipif(cpu.extension is None, reason=f"no CPU extension: {cpu.unavailable()}")
@pytest.mark.parametrize("p", [0.1, 0.5, 0.97, 1 - 2**-20])
@pytest.mark.parametrize("cols", [1, 8, 31, 32, 33, 63, 64, 65, 130, 700])
def test_every_instruction_set_draws_the_same(cols, p):
    x, zeros = torch.ones(5, cols), torch.zeros(5, cols)
    seed, weight, bias = torch.tensor(99), torch.zeros(cols), torch.zeros(cols)
    keep = keep_mask(99, x.shape, p)
    before = cpu.extension.instruction_set()
    try:
        for isa in cpu.extension.instruction_sets():
            cpu.extension.use_instruction_set(isa)
            # With a mean of 0 and an rstd of 1 and no weight, only sums of what is kept are left.
            _, mean, _ = cpu.dropout_add_layer_norm.forward(x, zeros, weight, bias, seed, p, 1e-12)
            expected = keep.float().mean(1) * kept_scale(p)
            torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-6)
            grad_x = cpu.dropout_add_layer_norm.backward(
                torch.randn(5, cols), x, zeros, torch.ones(cols), mean, torch.ones(5), seed, p
            )[0]
            assert not grad_x[~keep].any(), isa
            assert cols == 1 or grad_x[keep].all(), isa
    finally:
        cpu.extension.use_instruction_set(before)
