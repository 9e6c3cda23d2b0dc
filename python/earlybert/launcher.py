"""What torchrun and `accelerate launch` tell each process that they start. Needs no torch."""

from __future__ import annotations

import os

from .errors import ElsewhereError, UsageError


def launched_rank() -> int:
    """The number of this process among those that were started together."""
    return _number("RANK", 0)


def launched_count() -> int:
    """How many processes were started together; 1 where this one was started alone."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return _number("LOCAL_RANK", launched_rank())


def attempt() -> int:
    """How often the processes have been started before, by `torchrun --max-restarts`."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default


def check_alone(what: str) -> None:
    """Raises UsageError if this process was started together with others, each of which would do the same."""
    count = launched_count()
    if count > 1:
        raise (ElsewhereError if launched_rank() else UsageError)(
            f"{what} works in one process, and this is one of {count} (WORLD_SIZE): start it without torchrun; "
            "finetune and pretrain train in several"
        )
