"""What this installation has: versions, processors, extensions, and the backends of each op.

Printed by `python -m earlybert_kernels.env`, and by `earlybert env`.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import torch

from . import ops
from .backends import build_record, cpu, cuda, load_extension
from .ops import choices, dispatch

#: The variables that change how the library is built or run.
VARIABLES = (
    "EARLYBERT_BACKEND",
    "EARLYBERT_BUILD_CPU",
    "EARLYBERT_BUILD_CUDA",
    "EARLYBERT_BUILD_CUDA_EMULATED",
    "EARLYBERT_CUDA_ARCHS",
    "EARLYBERT_CUDA_EMULATED",
    "EARLYBERT_INSTRUCTION_SET",
    "EARLYBERT_SANITIZE",
    "CUDA_HOME",
    "CXX",
    "MAX_JOBS",
    "TRITON_INTERPRET",
)


def report() -> str:
    """A readable report of some 30 lines; it asks torch for GPUs, which importing the package never does."""
    sections = {
        "versions": _versions(),
        "processors": _processors(),
        "extensions": _extensions(),
        "ops (backends, best first)": _ops(),
        "environment": ((name, os.environ.get(name, "not set")) for name in VARIABLES),
    }
    lines = []
    for title, rows in sections.items():
        lines.append(f"{title}:")
        lines.extend(f"  {name:<26} {value}" for name, value in rows)
    return "\n".join(lines)


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", f"{platform.python_version()} ({platform.platform()})"
    for package in ("earlybert-kernels", "torch", "triton", "transformers"):
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"


def cpu_name() -> str:
    """What the processor calls itself."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _processors() -> Iterator[tuple[str, str]]:
    yield "cpu", f"{cpu_name()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        yield "gpu", f"none that torch sees (torch built for CUDA {torch.version.cuda or 'no'})"
        return
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        memory = f"{gpu.total_memory / 2**30:.0f} GiB"
        yield f"gpu {index}", f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {memory} (CUDA {torch.version.cuda})"


def _extensions() -> Iterator[tuple[str, str]]:
    modules: dict[str, tuple[ModuleType | None, str | None]] = {
        "_cpu": (cpu.extension, cpu.missing),
        "_cuda": load_extension("_cuda"),
    }
    if cuda.EMULATED:
        modules["_cuda_emulated"] = (cuda.extension, cuda.missing)
    for name, (module, missing) in modules.items():
        if module is None:
            yield name, missing or "missing"
            continue
        record = build_record().get(name, {})
        yield name, f"built, {module.__file__}"
        for key in ("compiler", "nvcc", "archs", "archs_from"):
            if key in record:
                yield f"  {key.replace('_', ' ')}", record[key]
        if "flags" in record:
            yield "  flags", " ".join(record["flags"])
        if name == "_cpu":
            yield "  instruction set", f"{module.instruction_set()} of {', '.join(module.instruction_sets())}"
            own, others = cpu.openmp_runtimes()
            yield "  OpenMP runtime", own or "unknown"
            for other in others:
                yield "  not used for it", f"{other}, another package's"


def _ops() -> Iterator[tuple[str, str]]:
    yield "choice on a GPU", choices.table()["note"]
    for name in dispatch.op_names():
        yield name, ", ".join(ops.backends(name))
        for backend, reason in dispatch.unavailable(name).items():
            yield f"  not {backend}", reason


if __name__ == "__main__":
    print(report())
