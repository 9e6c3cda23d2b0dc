"""How far training is, for whoever looks on: a bar in a terminal, lines of the log elsewhere."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from tqdm.auto import tqdm

from .. import processes

logger = logging.getLogger(__name__)

#: Seconds between two lines of the log, where there is no terminal for a progress bar.
LINE_INTERVAL = 10.0


def not_shown() -> bool | None:
    """What tqdm takes for `disable`: no bar but in a terminal, and of several processes only in the first."""
    return True if processes.rank() else None


class Progress:
    """Shows records of training, each a dict with `step`, `loss`, `learning_rate` and `tokens_per_second`."""

    def __init__(self, name: str, step: int, max_steps: int, device: torch.device) -> None:
        """
        Args:
            name: of the stage.
            step: optimizer steps taken.
            max_steps: those there are to be.
            device: whose memory is shown.
        """
        self._name, self._begin, self._max_steps, self._device = name, step, max_steps, device
        self._bar = tqdm(total=max_steps, initial=step, desc=name, unit="step", disable=not_shown())
        self._start = self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def advance(self) -> None:
        """Counts an optimizer step."""
        self._bar.update()

    @property
    def is_due(self) -> bool:
        """Whether it is time for a line, which the first process alone writes."""
        return processes.rank() == 0 and self._bar.disable and time.monotonic() - self._last_line >= LINE_INTERVAL

    def show(self, record: Mapping[str, float], *, is_last: bool = False) -> None:
        """Shows a record at the bar; or in a line, where one is due or the record is the last."""
        if not self._bar.disable:
            self._bar.set_postfix_str(_shown(record))
        elif is_last or self.is_due:
            self._last_line = time.monotonic()
            logger.info(self._line(record))

    def _line(self, record: Mapping[str, float]) -> str:
        step = int(record["step"])
        left = (self._max_steps - step) * (self._last_line - self._start) / (step - self._begin)
        used = memory_in_use(self._device)
        memory = "" if used is None else f"{used / 2**30:.2f} GiB memory, "
        return (
            f"{self._name}: step {step} of {self._max_steps}, {_shown(record)}, {memory}"
            f"{tqdm.format_interval(left)} left"
        )


def memory_in_use(device: torch.device) -> int | None:
    """Bytes: the most that torch has had on a GPU; else what the process has in memory now, None where none can say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # not getrusage, whose number may be that of the process that started this one
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return None


def _shown(record: Mapping[str, float]) -> str:
    return (
        f"loss {record['loss']:.4f}, learning rate {record['learning_rate']:.2e}, "
        f"{record['tokens_per_second']:,.0f} tokens/s"
    )
