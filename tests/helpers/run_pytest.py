"""Runs the benchmarks in a pytest of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_pytest(*arguments):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
    # In what a worker of pytest-xdist starts pytest-benchmark would take itself to be in one, and refuse to measure.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST_")}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
