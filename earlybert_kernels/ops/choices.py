"""The shipped table of which backend runs an op on a GPU, by architecture and size; every choice gives its reason."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from ..backends import nearest


@cache
def table() -> dict:
    """The table: by architecture, then by op, entries in order of the sizes from which on they hold.

    An entry's `order` names `cuda`, `triton` and `reference`, plain PyTorch, the fastest first. What one refuses, the
    next one is asked for; `reference` takes everything.
    """
    return json.loads((Path(__file__).parent / "choices.json").read_text())


@cache
def orders(op: str, architecture: int) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """Sizes, rising from 0, and the order of backends that holds from each on; empty where the table has none."""
    entries = nearest(table()["architectures"], architecture).get(op, ())
    return tuple((entry["from"], tuple(entry["order"])) for entry in entries)
