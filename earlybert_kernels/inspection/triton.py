"""`python -m earlybert_kernels.inspection.triton`: compiles every kernel without a GPU, and checks what came out.

For each configuration that ships (`workloads.py` calls every op at BERT's shapes and dtypes) it prints registers,
spilled bytes (and the share of an inner loop's instructions that go there), shared memory and the tensor-core
instruction. The exit status is 1 where a check fails: a kernel that does not compile, spills (in float32: more than a
little) or needs more shared memory than the GPU has, or a matrix product that leaves the tensor cores idle.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..backends.triton import INTERPRETED

#: Bytes of shared memory that a program may ask for, by architecture.
SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}

#: In half precision nothing may be spilled. In float32 so many of the instructions of a kernel, and of an inner loop in
#: it, may go to spilled registers: where a tile is far too large it is a third and more.
STACK_LIMITS = {"kernel": 0.10, "inner loop": 0.05}

_HALF = ("bf16", "fp16")


class Row(NamedTuple):
    """One configuration, what it compiled to, and what is wrong with it.

    Attributes:
        op, kernel: names.
        dtype: of the floating tensors; half precision where any has it.
        architecture: ten times the compute capability.
        warps, stages: what the compiler was told.
        registers, spilled, stack_in_loops, shared, instruction: of `compiled.Resources`; None if it does not compile.
        product: whether it multiplies matrices.
        constants: what is compiled in.
        problems: of `problems`.
    """

    op: str
    kernel: str
    dtype: str
    architecture: int
    warps: int
    stages: int
    registers: int | None
    spilled: int | None
    stack_in_loops: float | None
    shared: int | None
    instruction: str | None
    product: bool | None
    constants: dict[str, Any]
    problems: list[str]


def problems(architecture: int, dtype: str, resources: Any) -> list[str]:
    """What is wrong with a kernel for tensors of `dtype`, as sentences; resources: of `compiled.compile_all`."""
    if isinstance(resources, str):
        return [f"does not compile: {resources}"]
    found = []
    if dtype in _HALF and resources.spilled:
        found.append(f"spills {resources.spilled} bytes")
    shares = {"kernel": resources.stack_in_kernel, "inner loop": resources.stack_in_loops}
    for place, share in shares.items():
        if share > STACK_LIMITS[place]:
            found.append(f"spills: {share:.1%} of the instructions of the {place} go to the stack")
    limit = SHARED_LIMITS[architecture]
    if resources.shared > limit:
        found.append(f"needs {resources.shared} bytes of shared memory, the limit is {limit}")
    # Only who keeps float32 as it is all the way means to do without.
    wanted = dtype in _HALF or any(precision != "ieee" for _, precision in resources.products)
    if resources.products and wanted and resources.instruction is None:
        found.append("multiplies matrices without tensor cores")
    return found


def inspect(configurations: Sequence[Any]) -> list[Row]:
    """A row for each distinct one of these `compiled.Configuration`s."""
    from . import compiled

    distinct = compiled.distinct(configurations)
    rows = []
    for each, resources in zip(distinct, compiled.compile_all(distinct), strict=True):
        dtype = compiled.dtype(each.source)
        made = None if isinstance(resources, str) else resources
        row = Row(
            op=each.op,
            kernel=each.source.name,
            dtype=dtype,
            architecture=each.architecture,
            warps=each.num_warps,
            stages=each.num_stages,
            registers=None if made is None else made.registers,
            spilled=None if made is None else made.spilled,
            stack_in_loops=None if made is None else made.stack_in_loops,
            shared=None if made is None else made.shared,
            instruction=None if made is None else made.instruction,
            product=None if made is None else bool(made.products),
            constants={name: _plain(value) for name, value in compiled.constants(each.source).items()},
            problems=problems(each.architecture, dtype, resources),
        )
        rows.append(row)
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as text, the constants last."""
    heads = "op kernel dtype arch warps stages regs spilled in-loops shared product constants"
    lines = [heads.split()]
    for row in rows:
        product = (row.instruction or "no tensor cores") if row.product else "-"
        in_loops = None if row.stack_in_loops is None else f"{row.stack_in_loops:.1%}"
        cells = [*row[:6], row.registers, row.spilled, in_loops, row.shared, product]
        settings = " ".join(f"{name}={value}" for name, value in row.constants.items())
        lines.append([*("?" if cell is None else str(cell) for cell in cells), settings])
    widths = [max(map(len, column)) for column in list(zip(*lines, strict=True))[:-1]] + [0]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _plain(value: Any) -> Any:
    """As JSON can hold it: functions and dtypes by name."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else getattr(value, "name", repr(value))


def main() -> int:
    """The command line; returns the exit status: 0, or 1 where a check fails."""
    parser = argparse.ArgumentParser(prog="python -m earlybert_kernels.inspection.triton", description=__doc__)
    parser.add_argument("--arch", type=int, action="append", choices=sorted(SHARED_LIMITS), help="default: all")
    parser.add_argument("--op", action="append", help="of workloads.py; default: all")
    parser.add_argument("--all", action="store_true", help="all combinations, not a selection: takes long")
    parser.add_argument("--json", metavar="FILE", help="writes the same there")
    arguments = parser.parse_args()
    if INTERPRETED:
        parser.error("TRITON_INTERPRET is set: kernels are then Python functions, and there is nothing to compile")
    try:
        import triton
    except ModuleNotFoundError:
        parser.error("the package triton is not installed")
    from . import compiled, workloads

    unknown = sorted(set(arguments.op or ()) - set(workloads.WORKLOADS))
    if unknown:
        parser.error(f"no op {', '.join(unknown)}; the ops are {', '.join(workloads.WORKLOADS)}")
    began = time.monotonic()
    asked = arguments.arch or sorted(SHARED_LIMITS)
    reasons = {architecture: compiled.cannot_compile_for(architecture) for architecture in asked}
    configurations = [
        compiled.configuration(op, architecture, launched)
        for architecture in asked
        if reasons[architecture] is None
        for op in arguments.op or workloads.WORKLOADS
        for launched in workloads.launches(op, architecture, arguments.all)
    ]
    rows = inspect(configurations)
    print(table(rows))
    failed = [row for row in rows if row.problems]
    for row in failed:
        print(f"{row.op}: {row.kernel} ({row.dtype}, sm_{row.architecture}) {'; '.join(row.problems)}: {row.constants}")
    for architecture, reason in reasons.items():
        if reason is not None:
            print(f"sm_{architecture} is left out: Triton {triton.__version__} cannot compile for it ({reason})")
    seconds = time.monotonic() - began
    print(f"Triton {triton.__version__}: {len(rows)} configurations, {len(failed)} with problems, {seconds:.0f} s")
    if arguments.json:
        report = {"triton": triton.__version__, "left_out": reasons, "rows": [row._asdict() for row in rows]}
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
