"""What becomes of a step's memory between one step and the next."""

from __future__ import annotations

import ctypes
import sys

#: Names of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Has malloc keep for this process what it frees, as torch does on GPUs; elsewhere than with glibc, nothing.

    A step frees large tensors, such as all gradients, for which the next asks again. Given back to the system in
    between, they cost a page fault every 4 KiB: a tenth of a small model's step.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)  # large tensors come of the heap too,
        mallopt(_M_TRIM_THRESHOLD, -1)  # the end of which stays
