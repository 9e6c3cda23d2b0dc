import pytest

from bench.summary import paired_ratio, quartiles


def test_quartiles():
    assert quartiles([5, 1, 3, 2, 4]) == {"q1": 2, "median": 3, "q3": 4}
    assert quartiles([7]) == {"q1": 7, "median": 7, "q3": 7}


def test_ratios_are_taken_within_a_round():
    # Twice as fast in every round of a machine that becomes ten times slower.
    assert paired_ratio([1, 10, 1], [2, 20, 2]) == {"q1": 0.5, "median": 0.5, "q3": 0.5}
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio([1, 2], [1])
