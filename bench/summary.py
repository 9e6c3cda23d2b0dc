"""How repeated times are summed up: median and quartiles, and ratios within a round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Keys `q1`, `median` and `q3` of at least one value; in between, values are interpolated."""
    if len(values) == 1:
        return dict.fromkeys(("q1", "median", "q3"), values[0])
    cuts = statistics.quantiles(values, n=4, method="inclusive")
    return dict(zip(("q1", "median", "q3"), cuts, strict=True))


def paired_ratio(own: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Quartiles of `own / base` round by round, which a machine that slows down between rounds does not change.

    Raises:
        ValueError: there are not as many rounds of one as of the other.
    """
    return quartiles([mine / theirs for mine, theirs in zip(own, base, strict=True)])
