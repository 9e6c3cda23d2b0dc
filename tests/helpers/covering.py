"""Which combinations of parameters a sweep tries."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import pytest

#: A factor's place, and the index of one of its values.
Choice = tuple[int, int]


def every_pair(*, indirect: Sequence[str] = (), **factors: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrizes a test by so few combinations that any two values of two factors meet in one of them.

    For factors that the code handles one by one, or by two: a mistake in one value, or where two meet, shows as it
    does among all combinations. Those are as many as the product of all sizes; these, about that of the two largest.

    Args:
        indirect: the factors that are fixtures.
        factors: the values of each parameter; `pytest.param` of a single one carries its marks.
    """
    rows = covering([len(values) for values in factors.values()])
    chosen = [[values[at] for values, at in zip(factors.values(), row, strict=True)] for row in rows]
    combined = [
        pytest.param(
            *(value.values[0] if hasattr(value, "marks") else value for value in row),
            marks=[mark for value in row for mark in getattr(value, "marks", ())],
        )
        for row in chosen
    ]
    return pytest.mark.parametrize(tuple(factors), combined, indirect=list(indirect), ids=str)


def covering(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Rows of one index for each factor, the same in every call, in which all pairs of indices of two factors occur.

    Greedy: a row begins with a pair that is missing, and takes of each other factor, the largest first, what adds most
    new pairs, and of equals what was taken least. There are no rows if a factor has no values.
    """
    if 0 in sizes:
        return []
    values = [[(factor, value) for value in range(size)] for factor, size in enumerate(sizes)]
    missing = {pair for two in combinations(values, 2) for pair in product(*two)}
    rows: list[tuple[int, ...]] = []
    while missing:
        row = [*min(missing)]
        for others in sorted(values, key=len, reverse=True):
            if others[0][0] not in dict(row):
                row.append(max(others, key=lambda choice: _gain(choice, row, missing, rows)))
        missing -= set(combinations(sorted(row), 2))
        rows.append(tuple(value for _, value in sorted(row)))
    return rows


def _gain(
    choice: Choice, row: list[Choice], missing: set[tuple[Choice, Choice]], rows: list[tuple[int, ...]]
) -> tuple[int, int]:
    """How many missing pairs a row gets with another choice, and minus how often that was made."""
    factor, value = choice
    pairs = (tuple(sorted((choice, other))) for other in row)
    return sum(pair in missing for pair in pairs), -sum(other[factor] == value for other in rows)
