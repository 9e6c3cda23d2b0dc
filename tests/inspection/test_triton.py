"""`python -m earlybert_kernels.inspection.triton`: all that ships passes its checks, and they can fail."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import product

import pytest

from earlybert_kernels.inspection import triton
from earlybert_kernels.ops import dispatch

pytest.importorskip("triton")

# Kernels with one fault each, and some without, in a process of their own: in the tests' they may be interpreted.
FAULTS = '''
import json, sys
import torch
import triton
import triton.language as tl
from earlybert_kernels.backends.triton.launch import launch, recording
from earlybert_kernels.inspection import compiled
from earlybert_kernels.inspection.triton import inspect

@triton.jit
def spills(x, out, rows, N: tl.constexpr):
    """Has more sums than registers: each of 32 threads has 512."""
    at = tl.arange(0, N)
    sums = tl.zeros((N,), tl.float32)
    for row in range(rows):
        sums = tl.cumsum(sums + tl.load(x + row * N + at))
    tl.store(out + at, sums)

@triton.jit
def multiplies(x, out, N: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    a = tl.load(x + at).to(DTYPE)
    tl.store(out + at, tl.dot(a, a, input_precision=PRECISION))

@triton.jit
def is_ahead(x, y, out, steps, N: tl.constexpr):
    """Loads 64 KiB for each step, several steps ahead."""
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    sums = tl.zeros((N, N), tl.float32)
    for step in range(steps):
        sums = tl.dot(tl.load(x + step * N * N + at), tl.load(y + step * N * N + at), sums)
    tl.store(out + at, sums)

@triton.jit
def is_wrong(x):
    tl.store(x, no_such_name)

half, single = (torch.empty(2**18, dtype=dtype, device="meta") for dtype in (torch.bfloat16, torch.float32))
with recording(90) as launches:
    launch(spills, (1,), single, single, 7, N=2**14, num_warps=1)
    launch(is_ahead, (1,), half, half, half, 7, N=128, num_warps=8, num_stages=6)
    launch(multiplies, (1,), half, half, N=32, DTYPE=tl.float32, PRECISION="ieee")
    launch(is_wrong, (1,), half)
    launch(spills, (1,), half, half, 7, N=2**14, num_warps=1)
    for x in (single, half, single[:7]):  # the last says nothing new
        launch(multiplies, (3,), x, x, N=32, DTYPE=tl.bfloat16, PRECISION="tf32")
    launch(multiplies, (1,), single, single, N=32, DTYPE=tl.float32, PRECISION="ieee")
rows = inspect([compiled.configuration("faults", 90, each) for each in launches])
print(json.dumps([row._asdict() for row in rows]))
'''

# Of what ships: each configuration on one of the architectures that have it, the one on which its kernel, with that
# dtype, was tried least; and each kernel with each dtype on all. All on all is for the command, and takes minutes.
SELECTION = """
import json
from collections import Counter
from earlybert_kernels.inspection import compiled, triton, workloads

def kind(each):
    return each.source.name, compiled.dtype(each.source), each.architecture

architectures = [arch for arch in triton.SHARED_LIMITS if compiled.cannot_compile_for(arch) is None]
shipped = compiled.distinct(
    compiled.configuration(op, arch, launch)
    for arch in architectures for op in workloads.WORKLOADS for launch in workloads.launches(op, arch, False)
)
alike = {}
for each in shipped:
    alike.setdefault((each.source.hash(), each.num_warps, each.num_stages), []).append(each)
tried, chosen = Counter(), []
for group in [*sorted(alike.values(), key=len), *([each] for each in shipped)]:
    best = min(group, key=lambda each: tried[kind(each)])
    if len(chosen) < len(alike) or not tried[kind(best)]:
        chosen.append(best)
        tried[kind(best)] += 1
rows = [row._asdict() for row in triton.inspect(chosen)]
print(json.dumps({"architectures": architectures, "rows": rows}))
"""

# By number of tokens, the hashes of all that is compiled.
TOKENS = """
import json
from earlybert_kernels.inspection import compiled, workloads
hashes = {}
for tokens in (16411, 16416, 16427, 1003, 1008):  # 15% of 16427 is 16 * 154
    workloads.FEW = workloads.MANY = tokens
    hashes[tokens] = {}
    for op in workloads.WORKLOADS:
        launches = [launch for arch in (80, 90) for launch in workloads.launches(op, arch, False)]
        names = [launch.kernel.__name__ for launch in launches]
        sources = [compiled.configuration(op, 90, launch).source.hash() for launch in launches]
        hashes[tokens][op] = list(zip(names, sources))
print(json.dumps(hashes))
"""


def run(*command: str, **environment: str) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=inherited | environment)


def test_the_checks_can_fail(tmp_path):
    program = tmp_path / "faults.py"
    program.write_text(FAULTS, encoding="utf-8")
    done = run(str(program), PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    spills, too_large, idle, wrong, spills_half, *good = [" ".join(row["problems"]) for row in rows]
    assert re.search(r"spills: [1-9]\d\.\d% of the instructions of the kernel go to the stack", spills)
    assert re.match(r"spills \d+ bytes", spills_half)
    assert re.fullmatch(r"needs \d+ bytes of shared memory, the limit is 232448", too_large)
    assert idle == "multiplies matrices without tensor cores"
    assert "does not compile: CompilationError" in wrong and "no_such_name" in wrong
    assert good == ["", "", ""]
    kinds = [(row["dtype"], row["instruction"]) for row in rows]
    assert kinds[1] == ("bf16", "wgmma") and kinds[-3:] == [("bf16", "mma"), ("bf16", "mma"), ("fp32", None)]
    assert all(row["product"] and row["registers"] > 0 and row["shared"] > 0 for row in rows[-3:])


def test_what_ships_passes():
    done = run("-c", SELECTION)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not [row for row in found["rows"] if row["problems"]]
    assert set(found["architectures"]) >= {80, 90}
    ops = [op for op in dispatch.op_names() if "triton" in [*dispatch.backends(op), *dispatch.unavailable(op)]]
    assert {row["op"] for row in found["rows"]} >= set(ops)
    tried = {(row["kernel"], row["architecture"]) for row in found["rows"]}
    assert tried == set(product({kernel for kernel, _ in tried}, found["architectures"]))


def test_the_command_writes_what_it_finds(tmp_path):
    arguments = ["--op", "optimizer_step", "--arch", "90", "--json", str(tmp_path / "rows.json")]
    done = run("-m", "earlybert_kernels.inspection.triton", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "rows.json").read_text())
    assert report["left_out"] == {"90": None} and report["rows"]
    assert f"{len(report['rows'])} configurations, 0 with problems" in done.stdout


def test_nothing_is_compiled_anew_for_another_number_of_tokens():
    done = run("-c", TOKENS)
    assert done.returncode == 0, done.stderr
    hashes = json.loads(done.stdout)
    assert all(hashes["16411"].values())
    for first, others in (("16411", ("16416", "16427")), ("1003", ("1008",))):
        for other in others:
            assert hashes[other] == hashes[first]


@pytest.mark.parametrize(
    ("interpreted", "arguments", "message"),
    [(True, [], "TRITON_INTERPRET is set"), (False, ["--op", "atention"], "no op atention; the ops are")],
)
def test_what_cannot_be_inspected_is_said(interpreted, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(triton, "INTERPRETED", interpreted)
    monkeypatch.setattr(sys, "argv", ["inspection", *arguments])
    with pytest.raises(SystemExit) as end:
        triton.main()
    assert end.value.code == 2 and message in capsys.readouterr().err
