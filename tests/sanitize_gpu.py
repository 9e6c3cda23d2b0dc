"""Runs every op of the backends on GPUs, forward and backward, under tools of compute-sanitizer.

    python tests/sanitize_gpu.py [memcheck racecheck ...]

racecheck is for the kernels in CUDA C++ alone: Triton places its own barriers. torch's allocator is switched off, so
that the tool sees the ends of tensors; a deliberate fault comes first, to show that it would speak up. Where the
tool is missing, or does not know the machine, that is said, and is no failure.
"""

from __future__ import annotations

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

#: What runs under the tool: an activation of 100 values that is told that there are many more ...
FAULT = """
import torch
from earlybert_kernels.backends.triton import activation_kernels
from earlybert_kernels.backends.triton.launch import launch
x = torch.zeros(100, device="cuda")
launch(activation_kernels._forward, (50,), x, torch.empty_like(x), 100_000, ACTIVATION="relu", BLOCK=2048)
torch.cuda.synchronize()
"""
FINDING = "Invalid __global__"
#: ... and every op, as the tests of threads call it.
OPS = """
import examples, torch
import earlybert_kernels as ek
ops = [op for op in examples.EXAMPLES if BACKEND in ek.ops.backends(op)]
assert ops, ek.ops.dispatch.unavailable("dropout_add_layer_norm")
for op in ops:
    for dtype in examples.dtypes(op, BACKEND):
        found = examples.results(op, BACKEND, dropout_p=0.1, device="cuda", dtype=dtype)
        assert all(tensor.isfinite().all() for tensor in found)
        print("ran", op, dtype, flush=True)
"""


def sanitized(tool: str, code: str) -> subprocess.CompletedProcess:
    """Runs Python code under a tool of compute-sanitizer."""
    folders = [ROOT, ROOT / "python", ROOT / "tests" / "ops"]
    path = os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [TOOL, "--tool", tool, *OPTIONS, sys.executable, "-c", code]
    return subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def main(tools: list[str]) -> None:
    """Exits with an error at the first finding."""
    if TOOL is None:
        print("skipped: there is no compute-sanitizer on PATH or in /usr/local/cuda/bin")
        return
    done = sanitized("memcheck", FAULT)
    if "not supported" in done.stdout:
        print(f"skipped: compute-sanitizer does not know this machine:\n{done.stdout}")
        return
    if done.returncode == 0 or FINDING not in done.stdout:
        raise SystemExit(f"a deliberate fault was not found ({FINDING}):\n{done.stdout}")
    print(f"found as it should be: {FINDING}", flush=True)
    for tool in tools or BACKENDS:
        for backend in BACKENDS.get(tool, ("triton", "cuda")):
            done = sanitized(tool, OPS.replace("BACKEND", repr(backend)))
            print(f"== {tool}, {backend}\n{done.stdout}", flush=True)
            if done.returncode != 0:
                raise SystemExit(f"{tool}, {backend}: see above")


if __name__ == "__main__":
    main(sys.argv[1:])
