"""Times whole training steps of a model: stock, compiled, unpadded, converted, gated, with a ticket, captured.

    python -m bench.step --model MODEL --lengths sst2 --data-dir GLUE/SST-2 --output step.json
    python -m bench.step --shape base --lengths full --memory --output step.json
    python -m bench.step --shape modernbert-base --model-type modernbert --output step.json

Every variant takes the same batches, one after the other within each round and in an order of its own, so that a
machine whose speed drifts slows all of them down. A step is forward, backward, and cutting gradients to a norm and
AdamW: `clip_grad_norm_` and torch's fused AdamW on stock modules, `ek.AdamW` for converted models. (A search's L1 term,
a few thousand numbers, is left out.) What is printed are medians and quartiles over the rounds, and of the ratios to
the stock and to the converted step of the same round. A variant whose logits or gradients are wrong, or that does not
run, is left out, and the exit status is then 1. Captured and unpadded steps take the batches packed by
`earlybert_kernels.PackedCollator`, those whose tokens differ in number filled up to few shapes, which are captured
before. The file is written anew after every round, so that whatever ends the process leaves what it has measured.
`python -m bench.report step.json` prints the table again.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import random
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from earlybert.files import write_json
from earlybert.training.batches import NO_LABEL, Batch
from earlybert_kernels.models import layer_parts

from .. import provenance
from ..ops import roofline
from ..rates import measure_rates
from ..report import tables
from ..summary import paired_ratio, quartiles
from .memory import measure_apart
from .training import training_step
from .variants import (
    CONVERTED,
    DENSE,
    STOCK,
    VARIANTS,
    build,
    cannot_run,
    dtype_of,
    failed_checks,
    is_captured,
    is_packed,
    is_stock,
    own_batch,
)
from .workload import Workload, labels_tokens, pack, quiet_transformers

#: Rounds that do not count: what compiles does so in them, for two lengths and then for any.
WARM_UP = 4


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the arguments, measures, prints a Markdown table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    Workload.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    parser.add_argument("--memory", action="store_true", help="peak memory too, each variant in a process of its own")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    args = parser.parse_args(argv)
    quiet_transformers()
    workload = Workload.from_arguments(args, parser)
    if args.rounds < 1:
        parser.error(f"--rounds: expected at least 1, found {args.rounds}")

    device = provenance.pick_device()
    result = {
        "kind": "step",
        **provenance.provenance(device),
        "arguments": {**asdict(workload), "model": _last_parts(args.model), "data_dir": _last_parts(args.data_dir)},
        "rounds": args.rounds,
        "warm_up": WARM_UP,
        "rates": measure_rates(device, getattr(torch, args.dtype)),
    }

    def keep(measured: dict[str, Any]) -> None:
        result.update(measured)
        add_matrix_rates(result)
        if args.output is not None:
            write_json(args.output, result)

    measured = measure(workload, [name for name in VARIANTS if name in args.variants], args.rounds, device, keep)
    if measured["variants"]:
        if args.memory:
            for name, variant in result["variants"].items():
                variant["memory"] = measure_apart(workload, name)
            keep({})
        print(tables.step(result))
    for name, reason in measured["failures"].items():
        print(f"FAILED: {name}: {reason}", file=sys.stderr)
    if measured["failures"]:
        raise SystemExit(1)


def _last_parts(path: str | Path | None) -> str | None:
    """What is kept of a path, or of a hub's name: where a folder lies on some machine is no part of a result."""
    return None if path is None else "/".join(Path(path).parts[-2:])


def measure(
    workload: Workload,
    names: Sequence[str],
    rounds: int,
    device: torch.device,
    keep: Callable[[dict[str, Any]], None] = lambda measured: None,
) -> dict[str, Any]:
    """Checks and times variants.

    Args:
        workload: what is trained.
        names: of `VARIANTS`.
        rounds: how many.
        device: where.
        keep: given after every round what would be returned after it.

    Returns:
        `batches`: of each round's, `real_tokens`, `padded_tokens`, and the `dense_flops` of a step on its real tokens;
        `variants`: what `summarize` says of each; `failures`: of each variant that was wrong or did not run, why.
    """
    batches = workload.batches(WARM_UP + rounds, device)
    base = workload.stock_model().to(device)
    dtype = getattr(torch, workload.dtype)
    reasons = {name: cannot_run(name, base, device, dtype) for name in names}
    for name, reason in reasons.items():
        if reason is not None:
            print(f"{name}: left out, {reason}", file=sys.stderr)
    models, failures = {}, {}
    for name in (name for name in names if reasons[name] is None):
        with _noting(name, failures):
            models[name] = build(name, copy.deepcopy(base))
    failures |= failed_checks(models, lambda: copy.deepcopy(base), batches[0])
    models = {name: model for name, model in models.items() if name not in failures}
    masks = [batch["attention_mask"] for batch in batches[WARM_UP:]]
    encoder = (base.config.num_hidden_layers, base.config.hidden_size, _weights_of_a_layer(base))
    of_batches = {
        "real_tokens": [int(mask.sum()) for mask in masks],
        "padded_tokens": [mask.numel() for mask in masks],
        "dense_flops": [
            roofline.training_step(mask.sum(1).tolist(), *encoder).flops + _decoder_flops(batch, base.config)
            for mask, batch in zip(masks, batches[WARM_UP:], strict=True)
        ],
    }
    measured: dict[str, Any] = {"batches": of_batches, "variants": {}, "failures": failures}
    for seconds in time_steps(models, batches, device, dtype, failures):
        done = max(map(len, seconds.values()))
        measured["batches"] = {name: values[:done] for name, values in of_batches.items()}
        measured["variants"] = summarize(seconds, of_batches["real_tokens"][:done])
        keep(measured)
    return measured


def _weights_of_a_layer(model: nn.Module) -> int:
    _, parts = layer_parts(model)[0]
    return sum(linear.weight.numel() for linear in (*parts.attention_linears, *parts.feed_forward_linears))


def _decoder_flops(batch: Batch, config: Any) -> int:
    """Of the head and decoder on hidden words; heads of other workloads are too small to count."""
    if not labels_tokens(batch):
        return 0
    labelled = int((batch["labels"] != NO_LABEL).sum())
    return roofline.decoder_step(labelled, config.hidden_size, config.vocab_size).flops


@contextlib.contextmanager
def _noting(name: str, failures: dict[str, str]) -> Iterator[None]:
    """What goes wrong with a variant is noted, and the others go on."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        failures[name] = f"{type(error).__name__}: {error}"


def time_steps(
    models: dict[str, nn.Module],
    batches: list[Batch],
    device: torch.device,
    dtype: torch.dtype,
    failures: dict[str, str],
) -> Iterator[dict[str, list[float]]]:
    """Seconds of each variant's step, after each of the rounds that follow the first `WARM_UP`.

    A variant that fails before is noted in `failures` and left out; one that fails later ends the measurement.
    """
    steps, packed = {}, pack(batches) if any(map(is_packed, models)) else []
    for name, model in models.items():
        with _noting(name, failures):
            step = training_step(model, device, dtype_of(name, dtype), stock=is_stock(name), captured=is_captured(name))
            if is_captured(name):
                for batch in {batch["input_ids"].shape: batch for batch in packed}.values():
                    step(batch)
            steps[name] = step
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order, rng = list(steps), random.Random(0)
    for number, batch in enumerate(batches):
        rng.shuffle(order)  # what ran before leaves its mark on caches and on the allocator
        times = {}
        for name in order:
            own = packed[number] if is_packed(name) else own_batch(name, batch)
            with _noting(name, failures):
                begin = time.perf_counter()
                steps[name](own)
                times[name] = time.perf_counter() - begin
        if number < WARM_UP:
            order = [name for name in order if name in times]
            seconds = {name: [] for name in seconds if name in times}
        elif len(times) < len(seconds):
            return
        else:
            for name, own in times.items():
                seconds[name].append(own)
            if seconds:
                yield seconds


def summarize(seconds: dict[str, list[float]], real_tokens: list[int]) -> dict[str, Any]:
    """Per variant: its `seconds`, their quartiles as `time`, `of_stock` and `of_converted` (quartiles of the ratios
    within a round; None where that one was not run), and the median of `real_tokens_per_second`.
    """
    summary = {}
    for name, own in seconds.items():
        summary[name] = {
            "seconds": own,
            "time": quartiles(own),
            "of_stock": paired_ratio(own, seconds[STOCK]) if STOCK in seconds else None,
            "of_converted": paired_ratio(own, seconds[CONVERTED]) if CONVERTED in seconds else None,
            "real_tokens_per_second": statistics.median(t / s for t, s in zip(real_tokens, own, strict=True)),
        }
    return summary


def add_matrix_rates(result: dict[str, Any]) -> None:
    """Adds to every dense variant its `matrix_rate_share`: at which share of the fastest product's rate it works.

    What is counted is a stock step's work on the real tokens, whatever the variant does. (A converted model computes
    the last layer for the first tokens alone, where a head reads no others.)
    """
    flops, rate = result["batches"]["dense_flops"], result["rates"]["flops_per_second"]
    for name, variant in result["variants"].items():
        if name in DENSE:
            shares = [work / seconds / rate for work, seconds in zip(flops, variant["seconds"], strict=True)]
            variant["matrix_rate_share"] = statistics.median(shares)


if __name__ == "__main__":
    main()
