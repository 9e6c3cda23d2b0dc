"""Ctrl-C, or being told to end, at a moment when nothing is half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..launcher import launched_count


@contextmanager
def terminable() -> Iterator[None]:
    """Turns SIGTERM into a KeyboardInterrupt while within, in the main thread, so that it cleans up and says so too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class InterruptRequest:
    """Turns the first SIGINT or SIGTERM into a request that the training loop reads between two steps.

    SIGTERM is what batch systems send to a job whose time is up.

    Attributes:
        made: whether the user has asked to stop.
    """

    def __init__(self) -> None:
        self.made = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listens while within, in the main thread; a second signal is a KeyboardInterrupt.

        But not under torchrun, which hands Ctrl-C on to processes that have had it from the terminal, and ends them
        itself if they go on for too long.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.made and launched_count() == 1:
            raise KeyboardInterrupt
        self.made = True
