"""Builds the CPU extension and the emulated CUDA extension with sanitizers, and runs the ops' tests under them.

`make sanitize` runs this. AddressSanitizer replaces malloc, so that it sees the ends of torch's tensors although torch
itself is not compiled with it; deliberate faults come first, to show that both sanitizers would speak up.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "sanitize"

IMPORTS = "import torch\nfrom earlybert_kernels.backends.cpu import extension\n"
CALL = IMPORTS + (
    "rows, cols = {rows}, {cols}\n"
    "given, out, mean, rstd = (torch.zeros(n) for n in (64, 64, 4, 4))\n"  # 4 rows of 16
    "at = given.data_ptr()\n"
    "extension.dropout_add_layer_norm_forward(\n"
    "    rows, cols, at, at, at, at, 0, 0.0, 1e-12, out.data_ptr(), mean.data_ptr(), rstd.data_ptr()\n"
    ")\n"
)
CUDA_IMPORTS = "import torch\nfrom earlybert_kernels.backends.cuda import extension\n"
CUDA_CALL = CUDA_IMPORTS + (
    "given, out, mean, rstd = (torch.zeros(n) for n in (64, 64, 4, 4))\n"
    "at, float32 = given.data_ptr(), extension.DTYPES['float32']\n"
    "extension.dropout_add_layer_norm_forward(\n"
    "    0, 0, *[float32] * 3, 5, 16, at, at, at, at, 0, 0.0, 1e-12,\n"
    "    out.data_ptr(), 0, mean.data_ptr(), rstd.data_ptr()\n"
    ")\n"
)
#: What is called, and what the sanitizers have to say about it.
FAULTS = [
    (CALL.format(rows=5, cols=16), "heap-buffer-overflow"),
    (CALL.format(rows=2**62, cols=4), "signed integer overflow"),
    (CUDA_CALL, "heap-buffer-overflow"),
]

#: pytest puts the source tree's own folder first, and with it the normal build, unless it is told otherwise.
PYTEST = ("-m", "pytest", "-q", "-o", f"pythonpath={BUILD / 'lib'} .")

# Not run: what never calls the extension; what compiles with torch or starts processes of its own (slow, and no
# further call of it); tests of layer norm's accuracy (with checks in them its sums are not vectorised: one long chain
# of roundings).
NOT_RUN = ["[reference]", "gradcheck", "compiles_into", "opcheck", "own_process"]
NOT_RUN += ["match_the_reference", "every_instruction_set", "does_not_cancel", "is_layer_norm_of_the_sum", "triton"]


def library(name: str) -> str:
    """The path of one of the compiler's libraries."""
    command = [*shlex.split(os.environ.get("CXX") or "g++"), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def sanitized(*arguments: str, **options) -> subprocess.CompletedProcess:
    """Runs Python on the sanitized build."""
    env = {
        **os.environ,
        "PYTHONPATH": str(BUILD / "lib"),
        # libstdc++ too: AddressSanitizer looks up its functions when it starts, and Python itself does not load it.
        "EARLYBERT_CUDA_EMULATED": "1",
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python frees little at exit
        "UBSAN_OPTIONS": "print_stacktrace=1",
        **options.pop("env", {}),
    }
    return subprocess.run([sys.executable, "-P", *arguments], cwd=ROOT, env=env, **options)


def main() -> None:
    """Exits with an error at the first finding."""
    build = [sys.executable, "setup.py", "-q", "build"]
    build += ["--build-lib", str(BUILD / "lib"), "--build-temp", str(BUILD / "temp")]
    switches = {"EARLYBERT_SANITIZE": "1", "EARLYBERT_BUILD_CPU": "1", "EARLYBERT_BUILD_CUDA": "0"}
    switches["EARLYBERT_BUILD_CUDA_EMULATED"] = "1"
    subprocess.run(build, cwd=ROOT, env=os.environ | switches, check=True)

    fault = BUILD / "test_fault.py"
    for code, finding in FAULTS:
        fault.write_text(code)  # by pytest, to see that it finds the sanitized build
        done = sanitized(*PYTEST, "-s", str(fault), capture_output=True, text=True)
        if done.returncode == 0 or finding not in done.stderr:
            raise SystemExit(f"a deliberate fault was not found ({finding}):\n{done.stderr}")
        print(f"found as it should be: {finding}", flush=True)

    code = IMPORTS + "print(*extension.instruction_sets())\nprint(*extension.emulated_instruction_sets())"
    done = sanitized("-c", code, capture_output=True, text=True, check=True)
    names, emulated = (line.split() for line in done.stdout.splitlines())
    for name in names:
        # Tests that choose the instruction set themselves, which their names show, run once.
        not_run = [*NOT_RUN, "cuda", *([] if name == names[0] else [*names, *emulated])]
        selection = f"not ({' or '.join(not_run)})"
        print(f"== {name}", flush=True)
        tests = (*PYTEST, "tests/ops", "tests/test_counter_rng.py", "-k", selection)
        sanitized(*tests, env={"EARLYBERT_INSTRUCTION_SET": name}, check=True)

    print("== CUDA, emulated", flush=True)
    selection = f"cuda and not ({' or '.join(NOT_RUN)})"
    sanitized(*PYTEST, "tests/ops", "-k", selection, check=True)


if __name__ == "__main__":
    main()
