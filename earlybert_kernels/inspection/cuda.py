"""`python -m earlybert_kernels.inspection.cuda`: what nvcc made of every kernel, and what is wrong with it.

Reads the built extension with cuobjdump, without a GPU. For each architecture and kernel it prints registers, bytes
of a thread's stack, how many instructions go there, static shared memory and the tensor-core instruction; what a
launch asks for beyond that (dynamic shared memory) is not in the file. The exit status is 1 where a check fails.

Spilled registers lie on the stack, and so do local arrays with computed indices: the machine code does not tell which.
Either is slow, and a kernel without a stack has neither.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..backends import build_record, load_extension

#: Ops whose kernels multiply matrices, each with those of its kernels that do not.
PRODUCTS = {"attention": ("sum_parts_kernel",)}

#: Bytes of shared memory that a kernel may declare; a launch can ask for more.
STATIC_SHARED_LIMIT = 48 * 1024

#: In half precision there is to be no stack. In float32 so many of a kernel's instructions may go there.
STACK_LIMIT = 0.10

#: Kernels whose machine code is asked for in one command, whose length is limited.
_AT_A_TIME = 200

#: The tensor cores' instructions: of Ampere and Ada, of Hopper, of Blackwell.
_TENSOR_CORES = re.compile(r"\b(HMMA|HGMMA|UTC\w*MMA)\b")


class Kernel(NamedTuple):
    """One kernel for one architecture, as the assembler notes it.

    Attributes:
        symbol: its mangled name, the same for all architectures.
        architecture: as nvcc's: 80, 90a.
        registers: of a thread.
        stack: bytes of a thread's stack.
        local: bytes of memory of a thread beside the stack.
        shared: bytes of shared memory that it declares; from sm_90 on the system's 1024 are among them.
    """

    symbol: str
    architecture: str
    registers: int
    stack: int
    local: int
    shared: int


class Code(NamedTuple):
    """What is looked for in a kernel's machine code.

    Attributes:
        instructions: how many there are.
        on_stack: how many load from or store to a thread's own memory.
        tensor_cores: the tensor-core instruction, or None.
    """

    instructions: int
    on_stack: int
    tensor_cores: str | None


class Row(NamedTuple):
    """A kernel with its machine code, and what is wrong with it.

    Attributes:
        op: the source that it is from.
        name: with its template arguments.
        kernel: what the assembler notes.
        code: None where there is nothing to look for: no stack, no product.
        problems: of `problems`.
    """

    op: str
    name: str
    kernel: Kernel
    code: Code | None
    problems: list[str]


def kernels(listing: str) -> list[Kernel]:
    """The kernels in what `cuobjdump --dump-resource-usage` says."""
    pattern = re.compile(
        r"^arch = sm_(\w+)|^ *Function ([^\s:]+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", re.MULTILINE
    )
    found, architecture = [], ""
    for each in pattern.finditer(listing):
        if each[1]:
            architecture = each[1]
        else:
            registers, stack, shared, local = map(int, each.groups()[2:])
            found.append(Kernel(each[2], architecture, registers, stack, local, shared))
    return found


def codes(lines: Iterable[str]) -> dict[tuple[str, str], Code]:
    """The machine code of kernels by architecture and symbol, in what `cuobjdump -sass` says line by line."""
    found: dict[tuple[str, str], Code] = {}
    architecture, key = "", None
    for line in lines:
        if head := re.match(r"\s*(?:arch = sm_|Function : )(\S+)", line):
            if "arch" in line:
                architecture, key = head[1], None
            else:
                key = (architecture, head[1])
                found[key] = Code(0, 0, None)
        elif key and (instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+([^;]*);", line)):
            text, code = instruction[1], found[key]
            tensor_cores = _TENSOR_CORES.search(text)
            found[key] = Code(
                code.instructions + 1,
                code.on_stack + bool(re.search(r"\b(LDL|STL)\b", text)),
                tensor_cores[1] if tensor_cores else code.tensor_cores,
            )
    return found


def op_of(symbol: str) -> str | None:
    """The source file whose anonymous namespace a kernel is in, without its ending; None outside of one."""
    found = re.search(r"_GLOBAL__N__[0-9a-f]+_\d+_(\w+)_cu_[0-9a-f]+", symbol)
    return found[1] if found else None


def multiplies(op: str | None, name: str) -> bool:
    """Whether a kernel of that source and name, for half precision, is to be on tensor cores."""
    return op in PRODUCTS and is_half(name) and not any(other in name for other in PRODUCTS[op])


def is_half(name: str) -> bool:
    """Whether a kernel's template arguments name a type of half precision."""
    return "__half" in name or "__nv_bfloat16" in name


def problems(op: str | None, name: str, kernel: Kernel, code: Code | None) -> list[str]:
    """What is wrong with a kernel, as sentences; `code` is needed where it has a stack or `multiplies`."""
    if code is None and (kernel.stack or multiplies(op, name)):
        return ["has no machine code in cuobjdump's listing"]
    found = []
    if op is None:
        found.append("is in no source's anonymous namespace, so that its op cannot be told")
    if kernel.local:
        found.append(f"takes {kernel.local} bytes of local memory")
    if kernel.stack and code is not None:
        share = code.on_stack / max(code.instructions, 1)
        if is_half(name) or share > STACK_LIMIT:
            found.append(f"keeps {kernel.stack} bytes on the stack, where {share:.1%} of its instructions go")
    if kernel.shared > STATIC_SHARED_LIMIT:
        found.append(f"declares {kernel.shared} bytes of shared memory, the limit is {STATIC_SHARED_LIMIT}")
    if multiplies(op, name) and code is not None and code.tensor_cores is None:
        found.append("multiplies matrices without tensor cores")
    return found


def findings(rows: Sequence[Row], architectures: Sequence[str]) -> list[str]:
    """All problems as lines of text, and the kernels that one of these architectures lacks."""
    everywhere = {(row.op, row.name) for row in rows}
    found = [
        f"{row.op}: {row.name} (sm_{row.kernel.architecture}) {'; '.join(row.problems)}" for row in rows if row.problems
    ]
    for architecture in architectures:
        here = {(row.op, row.name) for row in rows if row.kernel.architecture == architecture}
        found += [f"sm_{architecture} has no {op}: {name}" for op, name in sorted(everywhere - here)]
        if not here:
            found.append(f"sm_{architecture} has no kernels")
    return found


def inspect(module: Path) -> list[Row]:
    """A row for each kernel and architecture of an extension, in order of op and name.

    Raises:
        RuntimeError: there is no cuobjdump, or it fails.
    """
    found = kernels("".join(_cuobjdump("--dump-resource-usage", str(module))))
    names = _short_names(sorted({kernel.symbol for kernel in found}))
    wanted: dict[str, list[str]] = {}
    for kernel in found:
        if kernel.stack or multiplies(op_of(kernel.symbol), names[kernel.symbol]):
            wanted.setdefault(kernel.architecture, []).append(kernel.symbol)
    code: dict[tuple[str, str], Code] = {}
    for architecture, symbols in wanted.items():
        for first in range(0, len(symbols), _AT_A_TIME):
            some = ",".join(symbols[first : first + _AT_A_TIME])
            code |= codes(_cuobjdump("-sass", "-arch", f"sm_{architecture}", "-fun", some, str(module)))
    rows = []
    for kernel in found:
        op, name, own = op_of(kernel.symbol), names[kernel.symbol], code.get((kernel.architecture, kernel.symbol))
        rows.append(Row(op or "?", name, kernel, own, problems(op, name, kernel, own)))
    return sorted(rows, key=lambda row: (row.op, row.name, row.kernel.architecture))


def tool() -> str | None:
    """The path of cuobjdump: on PATH, in CUDA_HOME, or the one that comes with Triton."""
    folders = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin:
        folders.append(Path(triton.origin).parent / "backends/nvidia/bin")
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=os.pathsep.join(map(str, folders)))


def _cuobjdump(*arguments: str) -> Iterable[str]:
    """The lines that it prints."""
    command = tool()
    if command is None:
        raise RuntimeError("cuobjdump was not found: on PATH, in CUDA_HOME/bin, or beside Triton")
    # It calls nvdisasm, which lies beside it.
    env = {**os.environ, "PATH": f"{Path(command).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    with subprocess.Popen(
        [command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
    ) as process:
        yield from process.stdout or ()
    if process.returncode:
        raise RuntimeError(f"cuobjdump {arguments[0]} failed with exit status {process.returncode}")


def _short_names(symbols: Sequence[str]) -> dict[str, str]:
    """By symbol: the name with template arguments, without namespaces, result and parameters."""
    demangle = shutil.which("cu++filt") or shutil.which("c++filt")
    if demangle is None:
        return {symbol: symbol for symbol in symbols}
    text = subprocess.run([demangle], input="\n".join(symbols), capture_output=True, text=True, check=True).stdout
    return dict(zip(symbols, map(short_name, text.splitlines()), strict=True))


def short_name(name: str) -> str:
    """`f<T, (Kind)1>` of `void earlybert::(anonymous namespace)::f<earlybert::T, (Kind)1>(int)`."""
    name = re.sub(r"(\w+::|\(anonymous namespace\)::|<unnamed>::)+", "", name.removeprefix("void "))
    begin, open_ones = len(name), 0
    while name.endswith(")") and begin and (open_ones or begin == len(name)):  # back over the parameters
        begin -= 1
        open_ones += {")": 1, "(": -1}.get(name[begin], 0)
    return name[:begin].replace(" >", ">")


def table(rows: Sequence[Row]) -> str:
    """The rows as text, the kernels' names last."""
    heads = "op arch regs stack on-stack shared product kernel"
    lines = [heads.split()]
    for row in rows:
        kernel, code = row.kernel, row.code
        on_stack = f"{code.on_stack}/{code.instructions}" if code and kernel.stack else "-"
        product = (code.tensor_cores or "no tensor cores") if code and multiplies(row.op, row.name) else "-"
        numbers = [kernel.registers, kernel.stack + kernel.local, on_stack, kernel.shared, product]
        lines.append([row.op, kernel.architecture, *map(str, numbers), row.name])
    widths = [max(map(len, column)) for column in list(zip(*lines, strict=True))[:-1]] + [0]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def main() -> int:
    """The command line; returns the exit status: 0, 1 where a check fails, 2 where none can be made."""
    argparse.ArgumentParser(prog="python -m earlybert_kernels.inspection.cuda", description=__doc__).parse_args()
    module, missing = load_extension("_cuda")
    if module is None:
        print(missing, file=sys.stderr)
        return 2
    try:
        rows = inspect(Path(module.__file__))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(rows))
    record = build_record()["_cuda"]
    failed = findings(rows, record["archs"].replace("+PTX", "").split(";"))
    for line in failed:
        print(line)
    print(f"{record['nvcc']}, {record['archs']}: {len(rows)} kernels, {len(failed)} problems")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
