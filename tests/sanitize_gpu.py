"""Runs every op of the backends on GPUs, forward and backward, under tools of compute-sanitizer.

    python tests/sanitize_gpu.py [--tools memcheck racecheck] [--backends triton cuda] [--ops OP ...]

racecheck is for the kernels in CUDA C++ alone: Triton places its own barriers. torch's allocator is switched off, so
that the tool sees the ends of tensors; a deliberate fault comes first, to show that it would speak up. Where the
tool is missing, or does not know the machine, that is said, and is no failure. What the tools say is printed as they
say it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOL = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
OPTIONS = ("--error-exitcode", "1", "--report-api-errors", "no", "--print-limit", "5")

#: By tool, whose kernels run under it.
BACKENDS = {"memcheck": ("triton", "cuda"), "racecheck": ("cuda",)}

#: A kernel that reads and writes past its tensors: an activation of 100 values that is told that there are many more.
FAULT = """
import torch
from earlybert_kernels.backends.triton import activation_kernels
from earlybert_kernels.backends.triton.launch import launch
x = torch.zeros(100, device="cuda")
launch(activation_kernels._forward, (50,), x, torch.empty_like(x), 100_000, ACTIVATION="relu", BLOCK=2048)
torch.cuda.synchronize()
"""
FINDING = "Invalid __global__"


def sanitized(tool: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    """Runs Python with arguments under a tool of compute-sanitizer."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "python"), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [TOOL, "--tool", tool, *OPTIONS, sys.executable, *arguments]
    return subprocess.run(command, env=env, stderr=subprocess.STDOUT, text=True, **options)


def main(argv: list[str] | None = None) -> None:
    """Exits with an error if a tool has found anything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", nargs="+", choices=tuple(BACKENDS), default=list(BACKENDS), help="default: all")
    parser.add_argument("--backends", nargs="+", choices=("triton", "cuda"), default=["triton", "cuda"])
    parser.add_argument("--ops", nargs="+", help="default: all")
    args = parser.parse_args(argv)
    if TOOL is None:
        print("skipped: there is no compute-sanitizer on PATH or in /usr/local/cuda/bin")
        return
    done = sanitized("memcheck", "-c", FAULT, stdout=subprocess.PIPE)
    if "not supported" in done.stdout:
        print(f"skipped: compute-sanitizer does not know this machine:\n{done.stdout}")
        return
    if done.returncode == 0 or FINDING not in done.stdout:
        raise SystemExit(f"a deliberate fault was not found ({FINDING}):\n{done.stdout}")
    print(f"found as it should be: {FINDING}", flush=True)
    ops = ["--ops", *args.ops] if args.ops else []
    failed = []
    for tool in args.tools:
        for backend in (each for each in BACKENDS[tool] if each in args.backends):
            print(f"== {tool}, {backend}", flush=True)
            if sanitized(tool, str(ROOT / "tests" / "launches.py"), backend, *ops).returncode != 0:
                failed.append(f"{tool}, {backend}")
    if failed:
        raise SystemExit(f"see above: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
