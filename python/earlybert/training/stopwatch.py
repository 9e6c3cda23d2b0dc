"""Measured time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up wall-clock seconds; waits for the GPU where a measured stretch begins and ends."""

    def __init__(self, device: torch.device, seconds: float = 0.0) -> None:
        self._device = device
        self._before = seconds
        self._start: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds so far, the running stretch included."""
        if self._start is None:
            return self._before
        self._synchronize()
        return self._before + time.perf_counter() - self._start

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measures what happens within."""
        self._synchronize()
        self._start = time.perf_counter()
        try:
            yield
        finally:
            self._before, self._start = self.seconds, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what happens within out of the running measurement."""
        self._before, self._start = self.seconds, None
        try:
            yield
        finally:
            self._start = time.perf_counter()

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
