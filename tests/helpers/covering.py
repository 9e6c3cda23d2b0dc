"""Which combinations of parameters a sweep tries."""

from __future__ import annotations

from collections import Counter
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
    return pytest.mark.parametrize(tuple(factors), combined, indirect=list(indirect), ids=_id)


def _id(value: Any) -> str:
    """The same in every process, unlike what a function is printed as."""
    return getattr(value, "__name__", str(value))


def covering(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Rows of one index for each factor, the same in every call, in which all pairs of indices of two factors occur.

    Greedy: a row begins with a pair that is missing, and takes of each other factor, the largest first, what adds most
    new pairs; of equals, most new triples, so that among many rows three small factors meet in every way too; and of
    those, the pairs that were taken least. There are no rows if a factor has no values.
    """
    if 0 in sizes:
        return []
    values = [[(factor, value) for value in range(size)] for factor, size in enumerate(sizes)]
    missing = {pair for two in combinations(values, 2) for pair in product(*two)}
    taken: Counter[tuple[Choice, ...]] = Counter()
    rows = []
    while missing:
        row = [*min(missing)]
        for others in sorted(values, key=len, reverse=True):
            if others[0][0] not in dict(row):
                row.append(max(others, key=lambda choice: _gain(choice, row, taken)))
        for count in (2, 3):
            taken.update(combinations(sorted(row), count))
        missing -= taken.keys()
        rows.append(tuple(value for _, value in sorted(row)))
    return rows


def _gain(choice: Choice, row: list[Choice], taken: Counter[tuple[Choice, ...]]) -> tuple[int, int, int]:
    """How many new pairs and triples a row gets with another choice, and minus how often its pairs were taken."""
    pairs, triples = (
        [taken[tuple(sorted((choice, *others)))] for others in combinations(row, count)] for count in (1, 2)
    )
    return pairs.count(0), triples.count(0), -sum(pairs)
