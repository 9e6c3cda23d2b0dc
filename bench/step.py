"""Times whole training steps of a BERT: stock, compiled, converted, gated, with a ticket, captured in a CUDA graph.

    python -m bench.step --model MODEL --lengths sst2 --data-dir GLUE/SST-2 --output step.json
    python -m bench.step --shape base --lengths full --memory --output step.json

Every variant takes the same batches, one after the other within each round and in an order of its own, so that a
machine whose speed drifts slows all of them down. A step is forward, backward, clipping and torch's fused AdamW
(a search's L1 term, a few thousand numbers, is left out). What is printed are medians and quartiles over the rounds,
and of the ratios to the stock and to the converted step of the same round. A variant whose logits or gradients are
wrong is an error. Captured steps take the batches packed by `earlybert_kernels.PackedCollator`, those whose tokens
differ in number filled up to few shapes, which are captured before. `python -m bench.report step.json` prints the table
again.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BertConfig

from earlybert.files import write_json
from earlybert.training.batches import Batch

from . import floors, record, tables
from .memory import measure_apart
from .rates import measure_rates
from .summary import paired_ratio, quartiles
from .training import training_step
from .variants import CONVERTED, DENSE, STOCK, VARIANTS, build, check_all, is_captured
from .workload import Workload, pack, quiet_transformers

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

    device = record.pick_device()
    result = {
        "kind": "step",
        **record.record(device),
        "arguments": {**asdict(workload), "model": _last_parts(args.model), "data_dir": _last_parts(args.data_dir)},
        "rounds": args.rounds,
        "warm_up": WARM_UP,
        **measure(workload, [name for name in VARIANTS if name in args.variants], args.rounds, device),
        "rates": measure_rates(device, getattr(torch, args.dtype)),
    }
    add_matrix_rates(result)
    if args.memory:
        for name, variant in result["variants"].items():
            variant["memory"] = measure_apart(workload, name)
    print(tables.step(result))
    if args.output is not None:
        write_json(args.output, result)


def _last_parts(path: str | Path | None) -> str | None:
    """What is kept of a path, or of a hub's name: where a folder lies on some machine is no part of a result."""
    return None if path is None else "/".join(Path(path).parts[-2:])


def measure(workload: Workload, names: Sequence[str], rounds: int, device: torch.device) -> dict[str, Any]:
    """Checks and times variants.

    Args:
        workload: what is trained.
        names: of `VARIANTS`.
        rounds: how many.
        device: where.

    Returns:
        `batches`: of each round's, `real_tokens`, `padded_tokens`, and the `dense_flops` of a step on its real tokens;
        `variants`: what `summarize` says of each.

    Raises:
        AssertionError: a variant's logits or gradients are wrong.
    """
    batches = workload.batches(WARM_UP + rounds, device)
    models, config = _checked_models(workload, names, batches[0], device)
    seconds = time_steps(models, batches, device, getattr(torch, workload.dtype))
    masks = [batch["attention_mask"] for batch in batches[WARM_UP:]]
    real_tokens = [int(mask.sum()) for mask in masks]
    encoder = (config.num_hidden_layers, config.hidden_size, config.intermediate_size)
    return {
        "batches": {
            "real_tokens": real_tokens,
            "padded_tokens": [mask.numel() for mask in masks],
            "dense_flops": [floors.training_step(mask.sum(1).tolist(), *encoder).flops for mask in masks],
        },
        "variants": summarize(seconds, real_tokens),
    }


def _checked_models(
    workload: Workload, names: Sequence[str], batch: Batch, device: torch.device
) -> tuple[dict[str, nn.Module], BertConfig]:
    base = workload.stock_model().to(device)
    models = {name: build(name, copy.deepcopy(base)) for name in names}
    check_all(models, lambda: copy.deepcopy(base), batch)
    return models, base.config


def time_steps(
    models: dict[str, nn.Module], batches: list[Batch], device: torch.device, dtype: torch.dtype
) -> dict[str, list[float]]:
    """Seconds of each variant's step, round by round, without the first `WARM_UP` rounds."""
    captured = [name for name in models if is_captured(name)]
    steps = {name: training_step(model, device, dtype, captured=name in captured) for name, model in models.items()}
    packed = pack(batches) if captured else []
    for batch in {batch["input_ids"].shape: batch for batch in packed}.values():
        for name in captured:
            steps[name](batch)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    order, rng = list(steps.items()), random.Random(0)
    for number, batch in enumerate(batches):
        rng.shuffle(order)  # what ran before leaves its mark on caches and on the allocator
        for name, step in order:
            own = packed[number] if name in captured else batch
            begin = time.perf_counter()
            step(own)
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


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
