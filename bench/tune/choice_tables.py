"""The tables of choices that ship with the library: JSON by architecture, then by what is chosen for, with a note."""

from __future__ import annotations

import json
from typing import Any

Entries = dict[str, list[dict[str, Any]]]


def measured(shipped: dict[str, Any], architecture: str, entries: Entries, how: str) -> dict[str, Any]:
    """A shipped table with one architecture replaced by what was measured, and a note that says how."""
    architectures = {**shipped["architectures"], architecture: entries}
    note = f"{architecture}: measured by {how}. Others: {shipped['note']}"
    return {"note": note, "architectures": dict(sorted(architectures.items(), key=lambda item: int(item[0])))}


def as_text(table: dict[str, Any]) -> str:
    """JSON with a line an entry."""
    architectures = []
    for name, kinds in table["architectures"].items():
        lists = []
        for kind, entries in kinds.items():
            lines = ",\n".join(f"    {json.dumps(entry)}" for entry in entries)
            lists.append(f"   {json.dumps(kind)}: [\n{lines}\n   ]")
        architectures.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(lists) + "\n  }")
    body = ",\n".join(architectures)
    return f'{{\n "note": {json.dumps(table["note"])},\n "architectures": {{\n{body}\n }}\n}}\n'
