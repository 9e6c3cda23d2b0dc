"""Peak memory of training steps of one variant, in a process of its own: prints JSON.

    python -m bench.step.memory --shape minilm --lengths sst2 --variant ticket-compact

On a GPU: what torch had allocated at most. On a CPU: by how much resident memory rose at most over what the process had
before the model was built, on Linux only. Building does not count where the kernel lets a process reset its peak.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import provenance
from .training import training_step
from .variants import VARIANTS, build, dtype_of, is_captured, is_packed, is_stock, own_batch
from .workload import Workload, pack, quiet_transformers

#: Until optimizer state is there, and what is compiled is compiled.
_WARM_UP = 3
_STEPS = 3
_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc(5)


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the arguments, runs the steps, prints `{"peak_bytes", "building_counts"}`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    Workload.add_arguments(parser)
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    args = parser.parse_args(argv)
    quiet_transformers()
    print(json.dumps(measure(Workload.from_arguments(args, parser), args.variant)))


def measure_apart(workload: Workload, variant: str) -> dict[str, Any]:
    """`measure` in a new process, so that nothing else is in its memory.

    Raises:
        RuntimeError: the process failed; the message has what it said.
    """
    command = [sys.executable, "-m", "bench.step.memory", *workload.flags(), "--variant", variant]
    here = str(Path(__file__).parents[2])
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    if done.returncode != 0:
        raise RuntimeError(f"peak memory of {variant}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(workload: Workload, variant: str) -> dict[str, Any]:
    """Builds the variant in this process and trains it for a few steps.

    Returns:
        `peak_bytes`; None where the system does not say. `building_counts`: whether the peak may be that of building.
    """
    device = provenance.pick_device()
    batches = workload.batches(_WARM_UP + _STEPS, device)
    captured = is_captured(variant)
    batches = pack(batches) if is_packed(variant) else [own_batch(variant, batch) for batch in batches]
    gc.collect()
    before = _resident("VmRSS")
    model = build(variant, workload.stock_model().to(device))
    dtype = dtype_of(variant, getattr(torch, workload.dtype))
    step = training_step(model, device, dtype, stock=is_stock(variant), captured=captured)
    for batch in batches[:_WARM_UP]:
        step(batch)
    gc.collect()
    was_reset = _reset_peak(device)
    for batch in batches[_WARM_UP:]:
        step(batch)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        after = _resident("VmHWM")
        peak = None if before is None or after is None else after - before
    return {"peak_bytes": peak, "building_counts": not was_reset}


def _resident(which: str) -> int | None:
    """Bytes that the process has now (`VmRSS`), or had at most (`VmHWM`); None where there is no /proc."""
    if not _STATUS.exists():
        return None
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(fields[which].split()[0]) * 1024


def _reset_peak(device: torch.device) -> bool:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _RESET.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
