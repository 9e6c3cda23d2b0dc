"""What becomes of a step's memory; in a process of its own, since it is settled for good."""

from __future__ import annotations

import subprocess
import sys

import pytest

from earlybert.training.memory import keep_freed_memory

_FAULTS = """
import resource
import torch
from earlybert.training.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.empty(16 << 20).fill_(1.0)  # 64 MiB, or 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
keep_freed_memory()
print(given_back, [faults() for _ in range(8)][-1])  # it takes a few to have the room for their alignment
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_the_next_step_finds_the_memory_of_the_last_one() -> None:
    run = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True)
    given_back, kept = map(int, run.stdout.split())
    assert given_back > 4 * 16, "of huge pages, even"
    assert kept < given_back / 8


@pytest.mark.parametrize("without", ["platform", "mallopt"])
def test_elsewhere_nothing_happens(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if without == "platform":
        monkeypatch.setattr("sys.platform", "darwin")
        monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("looked for malloc's settings"))
    else:
        monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    keep_freed_memory()
