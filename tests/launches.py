"""Runs the example of each op on a backend for GPUs, forward and backward, with dropout, and says so line by line.

    python tests/launches.py triton|cuda [--ops OP ...] [--dtypes bfloat16 ...] [--device cpu]

An op that the backend does not have is skipped. Exits with an error where one could not run or gave no finite numbers;
after an error of the GPU nothing more runs in a process, so that a process an op says most.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import earlybert_kernels as ek
from earlybert_kernels.backends import triton
from tests.helpers import examples
from tests.helpers.mended_interpreter import mend

GPU_BACKENDS = ("triton", "cuda")


def main(argv: list[str] | None = None) -> None:
    """Exits with an error if an op failed, or none could run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backend", choices=GPU_BACKENDS)
    parser.add_argument("--ops", nargs="+", choices=tuple(examples.EXAMPLES), default=list(examples.EXAMPLES))
    parser.add_argument("--dtypes", nargs="+", help="those of the op that are named here; default: all")
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    args = parser.parse_args(argv)
    # That there is no GPU is no reason to skip: whoever runs this wants to know of kernels.
    reason = ek.ops.dispatch.unavailable("dropout_add_layer_norm").get(args.backend)
    if reason is not None:
        raise SystemExit(f"{args.backend}: {reason}")
    if args.backend == "triton" and triton.INTERPRETED:
        mend()
    failures = [op for op in args.ops if not runs(op, args.backend, args.dtypes, args.device)]
    if failures:
        raise SystemExit(f"failed on {args.backend}: {', '.join(failures)}")


def runs(op: str, backend: str, dtypes: list[str] | None, device: str) -> bool:
    """Whether an op runs in each of its dtypes, or those of them that are named; of an op in one dtype, in that."""
    if backend not in ek.ops.backends(op):
        print(f"skipped: {backend} has no {op}", flush=True)
        return True
    known = examples.dtypes(op, backend)
    chosen = [dtype for dtype in known if dtypes is None or str(dtype).removeprefix("torch.") in dtypes]
    for dtype in chosen or known:
        try:
            found = examples.results(op, backend, dropout_p=0.1, device=device, dtype=dtype)
            if not all(tensor.isfinite().all() for tensor in found):
                raise FloatingPointError("a result is not finite")
        except Exception:
            traceback.print_exc(file=sys.stdout)
            print(f"FAILED: {op} {dtype} {backend}", flush=True)
            return False
        print(f"ran {op} {dtype} {backend}", flush=True)
    return True


if __name__ == "__main__":
    main()
