"""Times a forward pass alone, as evaluation and serving run it: stock, converted, compact, and ONNX Runtime.

    python -m bench.forward --model MODEL --lengths sst2 --data-dir GLUE/SST-2 --output forward.json
    python -m bench.forward --model MODEL --lengths full --max-length 16 --batch-size 1 --output sentence.json

Float32, in evaluation mode under `torch.inference_mode`. ONNX Runtime runs the graph that `earlybert export` writes of
the stock model, on the padded batch, on as many threads as torch; where its packages are not installed it is left out,
and standard error says so. Every variant takes the same batches, in an order of its own in each round; a batch is gone
through as often in a row as stock needs for a twentieth of a second. What is printed are medians and quartiles over the
rounds, and of the ratios to stock and to ONNX Runtime in the same round. A variant whose logits are not stock's is left
out, and the exit status is then 1. `python -m bench.report forward.json` prints the table again.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import earlybert
from earlybert.files import write_json
from earlybert.training.batches import Batch

from . import provenance
from .report import tables
from .step.variants import CONVERTED, STOCK, build, check, same_function
from .step.workload import Workload, quiet_transformers
from .summary import paired_ratio, quartiles

ONNX = "stock-onnx-runtime"
VARIANTS = (STOCK, CONVERTED, "ticket-masked", "ticket-compact", "ticket-stock", ONNX)
#: Rounds that do not count.
WARM_UP = 3
#: Seconds that stock computes in a round, at least.
_LEAST = 0.05

Run = Callable[[Batch], Tensor]


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the arguments, measures, prints a Markdown table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    Workload.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    args = parser.parse_args(argv)
    quiet_transformers()
    workload = Workload.from_arguments(args, parser)
    if args.rounds < 1:
        parser.error(f"--rounds: expected at least 1, found {args.rounds}")
    if workload.lengths not in ("sst2", "full") or workload.dtype != "float32":
        parser.error("a forward is measured of a classifier in float32: --lengths sst2 or full")

    measured = measure(workload, args.rounds)
    names = ("model", "data_dir")
    given = {name: None if getattr(args, name) is None else Path(getattr(args, name)).name for name in names}
    result = {
        "kind": "forward",
        **provenance.provenance(torch.device("cpu")),
        "arguments": {**asdict(workload), **given},
        "threads": torch.get_num_threads(),
        **measured,
    }
    if args.output is not None:
        write_json(args.output, result)
    print(tables.forward(result))
    for name, reason in measured["failures"].items():
        print(f"FAILED: {name}: {reason}", file=sys.stderr)
    if measured["failures"]:
        raise SystemExit(1)


def measure(workload: Workload, rounds: int) -> dict[str, Any]:
    """Checks and times the variants on the CPU.

    Returns:
        `batches`: of each round's, `real_tokens` and `padded_tokens`; `variants`: by name, `seconds` of each round's
        forward, their quartiles as `time`, and `of_stock` and `of_onnx_runtime`, quartiles of the ratios within a round
        (None without ONNX Runtime); `left_out` and `failures`: of each variant that was, why.
    """
    batches = [_inputs(batch) for batch in workload.batches(WARM_UP + rounds, torch.device("cpu"))]
    stock = workload.stock_model().eval()
    left_out: dict[str, str] = {}
    runs = {name: _of_torch(build(name, copy.deepcopy(stock)).eval()) for name in VARIANTS if name != ONNX}
    reason = _cannot_run()
    if reason is None:
        runs[ONNX] = _of_onnx_runtime(stock)
    else:
        left_out[ONNX] = reason
        print(f"{ONNX}: left out, {reason}", file=sys.stderr)
    failures = {}
    for name, run in list(runs.items()):
        base = STOCK if name == ONNX else same_function(name)
        try:
            check(name, run(batches[0]), runs[base](batches[0]))
        except AssertionError as error:
            failures[name] = str(error)
            del runs[name]
    seconds = time_forwards(runs, batches)
    masks = [batch["attention_mask"] for batch in batches[WARM_UP:]]
    return {
        "batches": {
            "real_tokens": [int(mask.sum()) for mask in masks],
            "padded_tokens": [mask.numel() for mask in masks],
        },
        "variants": {
            name: {
                "seconds": own,
                "time": quartiles(own),
                "of_stock": paired_ratio(own, seconds[STOCK]),
                "of_onnx_runtime": paired_ratio(own, seconds[ONNX]) if ONNX in seconds else None,
            }
            for name, own in seconds.items()
        },
        "left_out": left_out,
        "failures": failures,
    }


def time_forwards(runs: dict[str, Run], batches: Sequence[Batch]) -> dict[str, list[float]]:
    """Seconds of each variant's forward, in each of the rounds that follow the first `WARM_UP`."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order, rng, repeats = list(runs), random.Random(0), 1
    for number, batch in enumerate(batches):
        rng.shuffle(order)  # what ran before leaves its mark on caches
        for name in order:
            begin = time.perf_counter()
            for _ in range(repeats):
                runs[name](batch)
            seconds[name].append((time.perf_counter() - begin) / repeats)
        if number + 1 == WARM_UP:
            repeats = max(1, round(_LEAST / seconds[STOCK][-1]))
    return {name: own[WARM_UP:] for name, own in seconds.items()}


def _inputs(batch: Batch) -> Batch:
    """What a graph takes besides ids and mask, a stock model makes itself: here every variant is given it."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def _of_torch(model: nn.Module) -> Run:
    names = ("input_ids", "attention_mask", *(["token_type_ids"] if _has_types(model) else []))

    @torch.inference_mode()
    def run(batch: Batch) -> Tensor:
        return model(**{name: batch[name] for name in names}).logits

    return run


def _has_types(model: Any) -> bool:
    return getattr(model.config, "type_vocab_size", 0) > 0


def _cannot_run() -> str | None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)} (pip install 'earlybert-kernels[export]')" if missing else None


def _of_onnx_runtime(stock: Any) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        stock.save_pretrained(f"{folder}/stock")
        earlybert.export(f"{folder}/stock", f"{folder}/onnx", format="onnx")
        session = onnxruntime.InferenceSession(f"{folder}/onnx/model.onnx", options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(batch: Batch) -> Tensor:
        (logits,) = session.run(["logits"], {name: batch[name].numpy() for name in names})
        return torch.from_numpy(logits)

    return run


if __name__ == "__main__":
    main()
