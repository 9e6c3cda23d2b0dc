"""What sweeps leave out: of the combinations, and of no two values."""

from itertools import combinations, product

import pytest

from tests.helpers.covering import covering


@pytest.mark.parametrize("sizes", [(3, 2), (2, 2, 2), (14, 2, 2, 2), (5, 4, 3, 3, 2), (1, 4, 1)])
def test_every_two_values_meet_in_few_rows(sizes):
    rows = covering(sizes)
    for one, two in combinations(range(len(sizes)), 2):
        assert {(row[one], row[two]) for row in rows} == set(product(range(sizes[one]), range(sizes[two])))
    largest, second, *_ = sorted(sizes, reverse=True)
    assert largest * second <= len(rows) == len(set(rows)) <= 1.5 * largest * second
    assert rows == covering(sizes)


def test_a_factor_without_values_leaves_nothing():
    assert covering([3, 0, 2]) == []


def test_small_factors_meet_in_every_way_beside_a_large_one():
    assert {row[1:] for row in covering((14, 2, 2, 2))} == set(product(range(2), repeat=3))
