"""Timing with pytest-benchmark in pairs: every round runs the baseline just before what is measured.

pytest-benchmark measures one row after the other, and a machine's speed drifts in between. A ratio of two rows is
therefore no result; the ratio of a round to the baseline's run in the same round is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from .record import wait_for
from .summary import paired_ratio

WARM_UP = 2
#: A row that is slow gets fewer rounds: so many that its rounds take about so long, but not fewer than these unless
#: fewer were asked for.
SECONDS_PER_ROW = 3.0
MIN_ROUNDS = 5

#: Gives what is to be timed, after doing what is not.
Prepare = Callable[[], Callable[[], Any]]


def run_paired(
    benchmark: Any, prepare: Prepare, prepare_baseline: Prepare, device: torch.device, rounds: int
) -> dict[str, Any] | None:
    """Times rounds of one call each, from an idle device until it is idle again.

    Args:
        benchmark: pytest-benchmark's fixture; it keeps the measured seconds.
        prepare: called before every round of what is measured.
        prepare_baseline: the same of the baseline.
        device: what to wait for.
        rounds: how many at most, after `WARM_UP` that do not count.

    Returns:
        `seconds` and `baseline_seconds` of every round, and `ratio`, the quartiles of one over the other. None where
        pytest-benchmark is disabled and everything was run but once.
    """
    baseline_seconds = []

    def setup() -> tuple[tuple, dict]:
        run_baseline = prepare_baseline()
        wait_for(device)
        begin = time.perf_counter()
        run_baseline()
        wait_for(device)
        baseline_seconds.append(time.perf_counter() - begin)
        run = prepare()
        wait_for(device)
        return (run,), {}

    def target(run: Callable[[], Any]) -> None:
        run()
        wait_for(device)

    for _ in range(WARM_UP):
        begin = time.perf_counter()
        arguments, _ = setup()
        target(*arguments)
        round_seconds = time.perf_counter() - begin
    baseline_seconds.clear()
    benchmark.pedantic(target, setup=setup, rounds=affordable_rounds(rounds, round_seconds))
    if benchmark.stats is None:
        return None
    seconds = list(benchmark.stats.stats.data)
    return {
        "seconds": seconds,
        "baseline_seconds": baseline_seconds,
        "ratio": paired_ratio(seconds, baseline_seconds),
    }


def affordable_rounds(wanted: int, round_seconds: float) -> int:
    """Rounds of a row whose rounds take `round_seconds` each: at most `wanted`."""
    return min(wanted, max(MIN_ROUNDS, int(SECONDS_PER_ROW / round_seconds)))
