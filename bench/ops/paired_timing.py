"""Timing with pytest-benchmark in pairs: every round runs the baseline just before what is measured.

pytest-benchmark measures one row after the other, and a machine's speed drifts in between. A ratio of two rows is
therefore no result; the ratio of a round to the baseline's run in the same round is.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from ..device_timer import DeviceTimer, Prepare
from ..summary import paired_ratio

WARM_UP = 3
#: A row that is slow gets fewer rounds: so many that its rounds take about so long, but not fewer than these unless
#: fewer were asked for.
SECONDS_PER_ROW = 3.0
MIN_ROUNDS = 5


def run_paired(
    benchmark: Any, prepare: Prepare, prepare_baseline: Prepare, device: torch.device, rounds: int
) -> dict[str, Any] | None:
    """Times rounds of one measurement each, as `DeviceTimer` does it.

    Args:
        benchmark: pytest-benchmark's fixture; it keeps the measured seconds.
        prepare: called before every round of what is measured.
        prepare_baseline: the same of the baseline.
        device: what to wait for.
        rounds: how many at most, after `WARM_UP` that do not count.

    Returns:
        `seconds` of one call and `baseline_seconds` in every round, `calls` that a round consists of, and `ratio`, the
        quartiles of one over the other. None where pytest-benchmark is disabled and everything was run but once.
    """
    baseline, own = DeviceTimer(prepare_baseline, device), DeviceTimer(prepare, device)
    baseline_seconds, seconds = [], []

    def measure() -> None:
        baseline_seconds.append(baseline.seconds())
        seconds.append(own.seconds())

    for _ in range(WARM_UP):
        begin = time.perf_counter()
        baseline.warm_up()
        own.warm_up()
        round_seconds = time.perf_counter() - begin
    benchmark.pedantic(measure, rounds=affordable_rounds(rounds, round_seconds))
    if benchmark.stats is None:
        return None
    # pytest-benchmark has timed whole rounds, and has not summed them up yet.
    benchmark.stats.stats.data[:] = seconds
    return {
        "seconds": seconds,
        "baseline_seconds": baseline_seconds,
        "calls": own.calls,
        "ratio": paired_ratio(seconds, baseline_seconds),
    }


def affordable_rounds(wanted: int, round_seconds: float) -> int:
    """Rounds of a row whose rounds take `round_seconds` each: at most `wanted`."""
    return min(wanted, max(MIN_ROUNDS, int(SECONDS_PER_ROW / round_seconds)))
