"""`python -m earlybert_kernels.inspection.cuda`: all that was built passes its checks, and they can fail."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from earlybert_kernels.backends import build_record, load_extension
from earlybert_kernels.inspection import cuda
from earlybert_kernels.inspection.cuda import Code, Kernel, Row

MODULE, MISSING = load_extension("_cuda")


def symbol(op: str, name: str) -> str:
    return f"_ZN9earlybert58_GLOBAL__N__ca419446_25_{op}_cu_e988620b{name}"


RESOURCES = f"""
Fatbin elf code:
================
arch = sm_80
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function {symbol("attention", "7forwardIfE")}:
  REG:198 STACK:16 SHARED:32 LOCAL:0 CONSTANT[0]:481 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function plain:
  REG:12 STACK:0 SHARED:0 LOCAL:8 CONSTANT[0]:481 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin ptx code:
================
arch = sm_80

Fatbin elf code:
================
arch = sm_90a

Resource usage:
 Function plain:
  REG:40 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:481 TEXTURE:0 SURFACE:0 SAMPLER:0
"""

SASS = """
arch = sm_90a
	code for sm_90a
		Function : first
	.headerflags	@"EF_CUDA_64BIT_ADDRESS EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;             /* 0x00000a00ff017b82 */
                                                                      /* 0x000fe20000000800 */
        /*0010*/                   STL.64 [R1], R2 ;                  /* 0x00000a00ff017b82 */
        /*0020*/              @!P0 LDL R4, [R1+0x4] ;                 /* 0x00000a00ff017b82 */
        /*0030*/                   EXIT ;                             /* 0x00000a00ff017b82 */
		Function : second
        /*0000*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24 ;   /* 0x0000 */
Fatbin elf code:
arch = sm_100
		Function : second
        /*0000*/                   UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8] ;      /* 0x0000 */
"""


def test_the_assemblers_notes_are_read():
    attention = Kernel(symbol("attention", "7forwardIfE"), "80", registers=198, stack=16, local=0, shared=32)
    plain = Kernel("plain", "80", registers=12, stack=0, local=8, shared=0)
    hopper = Kernel("plain", "90a", registers=40, stack=0, local=0, shared=1024)
    assert cuda.kernels(RESOURCES) == [attention, plain, hopper]


def test_machine_code_is_read():
    assert cuda.codes(SASS.splitlines()) == {
        ("90a", "first"): Code(instructions=4, on_stack=2, tensor_cores=None),
        ("90a", "second"): Code(instructions=1, on_stack=0, tensor_cores="HGMMA"),
        ("100", "second"): Code(instructions=1, on_stack=0, tensor_cores="UTCHMMA"),
    }


@pytest.mark.parametrize(
    ("whole", "short"),
    [
        ("void earlybert::(anonymous namespace)::f<__half, earlybert::L<1> >(earlybert::A)", "f<__half, L<1>>"),
        ("void earlybert::f<(earlybert::Kind)1, 2>(void (*)(int), float)", "f<(Kind)1, 2>"),
        ("earlybert::f(float*)", "f"),
        ("_Znot_demangled", "_Znot_demangled"),
    ],
)
def test_names_are_shortened(whole, short):
    assert cuda.short_name(whole) == short


@pytest.mark.parametrize(
    ("op", "name", "changes", "code", "expected"),
    [
        ("rows", "f<float>", {}, None, []),
        ("rows", "f<__half>", {"stack": 8}, Code(100, 1, None), ["keeps 8 bytes on the stack, where 1.0% of its"]),
        ("rows", "f<float>", {"stack": 8}, Code(100, 10, None), []),
        ("rows", "f<float>", {"stack": 8}, Code(100, 11, None), ["keeps 8 bytes on the stack, where 11.0% of its"]),
        ("rows", "f<float>", {"local": 4}, None, ["takes 4 bytes of local memory"]),
        ("rows", "f<float>", {"shared": 49153}, None, ["declares 49153 bytes of shared memory, the limit is 49152"]),
        ("rows", "f<__half>", {"stack": 8}, None, ["has no machine code"]),
        (None, "f<float>", {}, None, ["is in no source's anonymous namespace"]),
        ("attention", "f<__half>", {}, Code(9, 0, "HMMA"), []),
        ("attention", "f<__nv_bfloat16>", {}, Code(9, 0, None), ["multiplies matrices without tensor cores"]),
        ("attention", "f<__half>", {}, None, ["has no machine code"]),
        ("attention", "sum_parts_kernel<__half, 64>", {}, None, []),
        ("attention", "f<float>", {}, None, []),
    ],
)
def test_the_checks_can_fail(op, name, changes, code, expected):
    kernel = Kernel("symbol", "90a", registers=40, stack=0, local=0, shared=1024)
    found = cuda.problems(op, name, kernel._replace(**changes), code)
    assert len(found) == len(expected)
    assert all(problem.startswith(start) for problem, start in zip(found, expected, strict=True))


def test_a_kernel_that_an_architecture_lacks_is_a_finding():
    def row(name: str, architecture: str, problems: list[str]) -> Row:
        return Row("rows", name, Kernel("", architecture, 40, 0, 0, 0), None, problems)

    rows = [row("f", "80", []), row("f", "90a", ["is slow", "is long"]), row("g", "80", [])]
    assert cuda.findings(rows[:2], ["80", "90a"]) == ["rows: f (sm_90a) is slow; is long"]
    assert cuda.findings(rows, ["80", "90a"])[1:] == ["sm_90a has no rows: g"]
    assert cuda.findings(rows[:1], ["80", "100"]) == ["sm_100 has no rows: f", "sm_100 has no kernels"]


FAULTS = """
namespace earlybert {
namespace {
struct __half {};
template <typename T>
__global__ void spills(float* values, int steps) {
  float sums[64];
  for (int i = 0; i < 64; ++i) sums[i] = values[i];
  for (int k = 0; k < steps; ++k) sums[(k * k) % 64] += sums[(5 * k) % 64];
  for (int i = 0; i < 64; ++i) values[i] = sums[i];
}
}  // namespace
void run(float* values) {
  spills<float><<<1, 1>>>(values, 7);
  spills<__half><<<1, 1>>>(values, 7);
}
}  // namespace earlybert
"""


@pytest.mark.skipif(cuda.tool() is None, reason="there is no cuobjdump")
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
def test_a_stack_is_found_in_what_nvcc_compiles(tmp_path):
    (tmp_path / "attention.cu").write_text(FAULTS)
    command = ["nvcc", "-arch=sm_80", "-shared", "-Xcompiler=-fPIC", "-o", "module.so", "attention.cu"]
    subprocess.run(command, cwd=tmp_path, check=True)
    half, single = cuda.inspect(tmp_path / "module.so")
    for row in (half, single):
        assert row.op == "attention" and row.kernel.architecture == "80" and row.kernel.stack >= 256
        assert row.code.on_stack > 0
    if shutil.which("c++filt") or shutil.which("cu++filt"):
        assert (half.name, single.name) == ("spills<__half>", "spills<float>")
        assert re.match("keeps 256 bytes on the stack, .*without tensor cores", " ".join(half.problems))


@pytest.mark.skipif(cuda.tool() is None, reason="there is no cuobjdump")
@pytest.mark.skipif(MODULE is None, reason=f"{MISSING}")
def test_every_kernel_that_was_built_passes():
    rows = cuda.inspect(Path(MODULE.__file__))
    architectures = build_record()["_cuda"]["archs"].replace("+PTX", "").split(";")
    assert cuda.findings(rows, architectures) == []
    sources = (Path(__file__).parents[2] / "csrc" / "cuda").glob("*.cu")
    assert {row.op for row in rows} == {source.stem for source in sources if has_kernels(source)}


def has_kernels(source):
    headers = re.findall(rf'#include "({source.stem}_\w+\.cuh)"', source.read_text())  # what is a part of it
    return any("__global__" in path.read_text() for path in (source, *map(source.with_name, headers)))


@pytest.mark.skipif(MODULE is None, reason=f"{MISSING}")
def test_without_cuobjdump_that_is_said(monkeypatch, capsys):
    monkeypatch.setattr(cuda, "tool", lambda: None)
    monkeypatch.setattr(sys, "argv", ["inspection"])
    assert cuda.main() == 2
    assert "cuobjdump was not found: on PATH, in CUDA_HOME/bin" in capsys.readouterr().err
