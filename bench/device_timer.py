"""How long a device works on a call, and not how long a host takes to ask for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from .provenance import wait_for

#: Given a number, gives what is to be timed, after doing what is not. Different numbers have inputs of their own.
Prepare = Callable[[int], Callable[[], Any]]

#: On a GPU a measurement consists of so many calls that it takes about so long, but of no more than these: what stands
#: at its ends, a few microseconds, then does not count. Each has inputs of its own and all results are kept, so that
#: none finds in a cache what the one before it has read or written.
_SECONDS = 1e-3
_MOST_CALLS = 10
#: What a waiting GPU counts in a second, at most, and the longest that it is made to wait.
_CYCLES_PER_SECOND = 2e9
_LONGEST_WAIT = 0.05


class DeviceTimer:
    """Times calls on a device.

    A host needs longer to ask a GPU for a small op than the GPU for doing it. So the GPU waits until the host has asked
    for everything, and is timed by events from the first call's beginning to the last one's end. A call that itself
    waits for the device is timed with its waits. On a CPU it is one call, by the clock.

    Attributes:
        calls: how many a measurement consists of.
    """

    def __init__(self, prepare: Prepare, device: torch.device) -> None:
        self.calls = 1
        self._prepare, self._device = prepare, device
        self._host_seconds = 0.0  # in which the host asks for one call

    def warm_up(self) -> None:
        """One call that does not count; what compiles does so here. After two of them the number of calls is known."""
        self.calls = 1
        seconds = self.seconds()
        if self._device.type == "cuda":
            self.calls = max(1, min(_MOST_CALLS, math.ceil(_SECONDS / max(seconds, 1e-9))))

    def seconds(self) -> float:
        """Of one call, the mean of some; from an idle device until it is idle again."""
        runs = [self._prepare(number) for number in range(self.calls)]
        wait_for(self._device)
        if self._device.type != "cuda":
            begin = time.perf_counter()
            runs[0]()
            return time.perf_counter() - begin
        with torch.cuda.device(self._device):
            return self._seconds_of_gpu(runs)

    def _seconds_of_gpu(self, runs: list[Callable[[], Any]]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        wait = min(1.5 * len(runs) * self._host_seconds, _LONGEST_WAIT)  # the first call may have compiled something
        torch.cuda._sleep(int(wait * _CYCLES_PER_SECOND))
        host_begin = time.perf_counter()
        begin.record()
        results = [run() for run in runs]
        end.record()
        self._host_seconds = (time.perf_counter() - host_begin) / len(runs)
        wait_for(self._device)
        del results
        return begin.elapsed_time(end) * 1e-3 / len(runs)
