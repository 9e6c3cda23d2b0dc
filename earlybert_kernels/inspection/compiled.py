"""Compiles recorded launches for GPUs that need not be there, and says what came out: registers, spills, shared memory.

How arguments become types, constants and alignments is Triton's own doing: the functions that its launcher uses are
called here on tensors of the device "meta", which count as aligned.
"""

from __future__ import annotations

import contextlib
import functools
import io
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from ..backends.triton.launch import Launch

#: Instructions of a loop that time is spent in; smaller ones set memory to 0 or look something up.
_LEAST_LOOP = 64
_INSTRUCTION_BYTES = 16
#: What a kernel's PTX holds of each kind of tensor-core instruction.
_INSTRUCTIONS = {"tcgen05": "tcgen05.mma", "wgmma": "wgmma.mma_async", "mma": "mma.sync"}


class Configuration(NamedTuple):
    """A kernel as one or more launches ask for it.

    Attributes:
        op: whose launch it was.
        architecture: ten times the compute capability.
        source: what Triton compiles: the kernel with the types, constants and alignments of its arguments.
        num_warps, num_stages: what the compiler is told.
    """

    op: str
    architecture: int
    source: ASTSource
    num_warps: int
    num_stages: int


class Resources(NamedTuple):
    """What a compiled kernel needs, and how it multiplies.

    Attributes:
        registers: of a thread.
        spilled: bytes of a thread's stack, which is where registers go that there are too few of.
        stack_in_kernel: the share of all instructions that read or write the stack.
        stack_in_loops: the largest such share of an innermost loop; of loops that are worth the name.
        shared: bytes of shared memory of a program.
        instruction: the tensor-core instruction, or None.
        products: the operands' dtype and the precision of every `tl.dot`.
    """

    registers: int
    spilled: int
    stack_in_kernel: float
    stack_in_loops: float
    shared: int
    instruction: str | None
    products: tuple[tuple[str, str], ...]


def configuration(op: str, architecture: int, recorded: Launch) -> Configuration:
    """What Triton compiles for a launch on that architecture."""
    kernel, backend = recorded.kernel, make_backend(_target(architecture))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    told = {"num_warps": recorded.num_warps, "num_stages": recorded.num_stages}
    bound, specialization, options = bind(**recorded.arguments, **recorded.constants, **told)
    _, signature, constants, attributes = kernel._pack_args(backend, told, bound, specialization, options)
    source = ASTSource(kernel, signature, constants, attributes)
    return Configuration(op, architecture, source, recorded.num_warps, recorded.num_stages)


def distinct(configurations: Iterable[Configuration]) -> list[Configuration]:
    """Without those that only repeat another; the first op that asks for a kernel is the one that is named."""
    kept: dict[tuple, Configuration] = {}
    for each in configurations:
        # The hash covers the kernel's code and that of the functions it calls, and all that it is specialised on.
        kept.setdefault((each.architecture, each.source.hash(), each.num_warps, each.num_stages), each)
    return list(kept.values())


def compile_all(configurations: Sequence[Configuration]) -> list[Resources | str]:
    """The resources of each, or why it does not compile; in as many processes as there are cores."""
    global _todo
    _todo = configurations
    # Forked processes have the kernels, which cannot be pickled.
    with multiprocessing.get_context("fork").Pool(len(os.sched_getaffinity(0))) as pool:
        return pool.map(_compile_one, range(len(configurations)), chunksize=1)


# What the processes compile.
_todo: Sequence[Configuration] = ()


def _compile_one(number: int) -> Resources | str:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Triton prints the whole code of what its assembler rejects
            return compile_one(_todo[number])
    except Exception as error:  # whatever goes wrong is this kernel's result; the others go on
        return f"{type(error).__name__}: {error}"


def compile_one(configuration: Configuration) -> Resources:
    """Compiles a kernel, or takes it from Triton's cache.

    Raises:
        Exception: Triton or its assembler cannot compile it.
    """
    told = {"num_warps": configuration.num_warps, "num_stages": configuration.num_stages}
    binary = triton.compile(configuration.source, target=_target(configuration.architecture), options=told)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        registers, spilled = _registers_and_stack(file.name)
        shares = _stack_shares(file.name) if spilled else (0.0, 0.0)
    ptx = binary.asm["ptx"]
    instruction = next((name for name, opcode in _INSTRUCTIONS.items() if opcode in ptx), None)
    return Resources(registers, spilled, *shares, binary.metadata.shared, instruction, _products(binary.asm["ttir"]))


@functools.cache
def cannot_compile_for(architecture: int) -> str | None:
    """Why the installed Triton cannot compile for an architecture at all, or None."""
    source = ASTSource(_nothing, {"pointer": "*i32"})
    failed = compile_all([Configuration("", architecture, source, 1, 1)])[0]
    return failed if isinstance(failed, str) else None


@triton.jit
def _nothing(pointer):  # type: ignore[no-untyped-def]  # a kernel
    tl.store(pointer, 0)


def _target(architecture: int) -> GPUTarget:
    return GPUTarget("cuda", architecture, 32)


def _cuobjdump(option: str, cubin: str) -> str:
    """What NVIDIA's tool, which comes with Triton, lists of a file; it calls another one, which comes with it."""
    disassembler = os.path.dirname(triton.knobs.nvidia.nvdisasm.path)
    environment = {**os.environ, "PATH": f"{disassembler}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [triton.knobs.nvidia.cuobjdump.path, option, cubin]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def _registers_and_stack(cubin: str) -> tuple[int, int]:
    """As the assembler has noted them in its output, which holds one kernel."""
    listing = _cuobjdump("--dump-resource-usage", cubin)
    found = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", listing)
    if len(found) != 1:
        raise RuntimeError(f"cuobjdump --dump-resource-usage says something unexpected: {listing!r}")
    registers, stack, local = map(int, found[0])
    return registers, stack + local


def _stack_shares(cubin: str) -> tuple[float, float]:
    """`Resources.stack_in_kernel` and `stack_in_loops`, from the machine code."""
    listing = re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]*);", _cuobjdump("-sass", cubin))
    instructions = [(int(address, 16), text) for address, text in listing]
    loops = []
    for address, text in instructions:
        target = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if target is not None and int(target.group(1), 16) < address:
            loops.append(range(int(target.group(1), 16), address + 1))

    def share(region: range) -> float:
        own = [text for address, text in instructions if address in region]
        return sum("LDL" in text or "STL" in text for text in own) / len(own)

    def is_innermost(loop: range) -> bool:
        return not any(other != loop and other[0] in loop and other[-1] in loop for other in loops)

    large = [loop for loop in loops if is_innermost(loop) and len(loop) >= _LEAST_LOOP * _INSTRUCTION_BYTES]
    return share(range(instructions[-1][0] + 1)), max(map(share, large), default=0.0)


def _products(ttir: str) -> tuple[tuple[str, str], ...]:
    """Operand dtype and precision of every product in Triton's first intermediate code."""
    products = set()
    for line in ttir.splitlines():
        if "tt.dot " not in line:
            continue
        dtype = re.search(r": tensor<(?:\d+x)+(\w+)", line)
        precision = re.search(r"inputPrecision = (\w+)", line)
        if dtype is None:
            raise RuntimeError(f"cannot read Triton's intermediate code: {line.strip()}")
        products.add((dtype.group(1), "ieee" if precision is None else precision.group(1)))
    return tuple(sorted(products))


def constants(source: ASTSource) -> dict[str, Any]:
    """The arguments that are compiled in: `tl.constexpr`, tensors that are None, ints that are 1."""
    names: list[str] = source.fn.arg_names
    return {names[path[0]]: value for path, value in source.constants.items()}


def dtype(source: ASTSource) -> str:
    """The dtype that a kernel is for: of its floating tensors and of its constants; half precision comes first."""
    names = {kind[1:] for kind in source.signature.values() if kind.startswith("*")}
    names |= {value.name for value in source.constants.values() if isinstance(value, tl.dtype)}
    return next((name for name in ("bf16", "fp16", "fp32") if name in names), "-")
