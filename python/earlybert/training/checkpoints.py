"""When a training loop is saved: every so many steps, at the end of a stage, and when the user interrupts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import Interrupted
from ..run_directory import RunDirectory
from .interrupt import InterruptRequest
from .loop import TrainingLoop


class Checkpoints:
    """Saves a run's loops to its folder."""

    def __init__(self, directory: RunDirectory, interrupt: InterruptRequest, every: int) -> None:
        """
        Args:
            directory: the run's.
            interrupt: whether the user asked to stop.
            every: optimizer steps between two checkpoints; 0 for none in between.
        """
        self._directory = directory
        self._interrupt = interrupt
        self._every = every

    def save(self, loop: TrainingLoop, extra: dict[str, Any]) -> None:
        """Writes a checkpoint, which is the loop's state and what else the run has to remember."""
        self._directory.save_checkpoint({**extra, "loop": loop.state_dict()})

    def after_step(self, loop: TrainingLoop, extra: Callable[[], dict[str, Any]]) -> None:
        """Saves if it is time to, off the loop's clock.

        Raises:
            Interrupted: the user asked for it; there is a checkpoint then.
        """
        if self._interrupt.made or (self._every and loop.step % self._every == 0):
            with loop.watch.paused():
                self.save(loop, extra())
        if self._interrupt.made:
            raise Interrupted(
                f"{self._directory.path}: interrupted in stage {loop.settings.name} after {loop.step} of "
                f"{loop.settings.max_steps} steps, with a checkpoint to resume from"
            )
