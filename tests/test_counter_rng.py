"""The rule by which a dropout seed keeps elements, in Python and as the CPU extension computes it."""

import numpy as np
import pytest
import torch

from earlybert_kernels.backends import cpu
from earlybert_kernels.reference.counter_rng import keep_mask, philox, threshold

# Known answers for Philox-4x32-10, published with the generator: counter, key, words.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers(counter, key, words):
    assert philox(counter, key) == words
    as_tensors = philox([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])
    assert tuple(int(w) for w in as_tensors) == words
    if cpu.extension is not None:
        assert cpu.extension.philox(*counter, *key) == words


def test_an_element_draws_its_own_word():
    mask = keep_mask(7, (3, 5), 0.5)
    for i, kept in enumerate(mask.flatten().tolist()):
        assert kept == (philox((i // 4, 0, 0, 0), (7, 0))[i % 4] >= 2**31)


def test_the_high_half_of_the_seed_counts():
    assert not torch.equal(keep_mask(1, (100,), 0.5), keep_mask(1 + 2**32, (100,), 0.5))
    assert torch.equal(keep_mask(2**40 + 3, (100,), 0.5), keep_mask(torch.tensor(2**40 + 3), (100,), 0.5))
    assert keep_mask(-1, (100,), 0.5).any()  # a torch seed may have its sign bit set


def test_threshold_is_not_quantised():
    assert threshold(0.0) == 0
    assert threshold(0.5) == 2**31
    assert abs(threshold(0.1) / 2**32 - 0.1) < 2**-32
    assert threshold(np.nextafter(1.0, 0.0)) == 2**32 - 1


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.01])
def test_keep_rate(p):
    n = 1_000_000
    kept = keep_mask(11, (n,), p).sum().item()
    assert abs(kept - n * (1 - p)) < 5 * (n * p * (1 - p)) ** 0.5


def test_rows_columns_and_seeds_are_uncorrelated():
    rows, cols, p = 64, 4096, 0.3
    masks = [keep_mask(seed, (rows, cols), p).double() - (1 - p) for seed in (0, 1, 2, 2**32)]
    variance = p * (1 - p)

    def correlation(a, b):
        return ((a * b).mean() / variance).abs().item() * a.numel() ** 0.5  # in sigmas

    mask = masks[0]
    assert correlation(mask[1:], mask[:-1]) < 5
    for lag in (1, 2, 3, 4, 8):
        assert correlation(mask[:, lag:], mask[:, :-lag]) < 5
    for other in masks[1:]:
        assert correlation(mask, other) < 5
