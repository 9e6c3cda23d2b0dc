"""Equal runs of several methods over several seeds, and the table that says what came of them."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..arguments import KERNELS, METHODS, FinetuneArguments, PretrainArguments, RunArguments
from ..errors import UsageError
from ..files import write_bytes, write_json
from ..launcher import check_alone
from ..run_directory import RunDirectory
from ..tasks import get_task
from .summary import MIN_SEEDS, MIN_STANDARD_ERRORS

logger = logging.getLogger(__name__)

#: The methods of `finetune`, and dense training for as many epochs as a ticket is trained.
COMPARED_METHODS = ("dense", "dense-short", *(method for method in METHODS if method not in ("dense", "search")))

_OF_STOCK = " The last column is total seconds over those of dense training with kernels off."

PLOT = "comparison.png"

#: A row of the table: method and kernels.
Variant = tuple[str, str]


def compare(
    template: FinetuneArguments | PretrainArguments, variants: Sequence[Variant], seeds: Sequence[int]
) -> dict[str, Any]:
    """Runs every variant with every seed, seed by seed: a machine that slows down slows all of them down.

    Finished runs are not repeated and interrupted ones are continued, unless the template says overwrite.

    Args:
        template: the arguments that all runs share. Runs are in folders of its `output_dir`, where
            `comparison.json` and `comparison.md` are written, and where the runs were evaluated while they trained
            `comparison.png`.
        variants: methods (of `COMPARED_METHODS`) and kernels.
        seeds: at least one.

    Returns:
        What is in `comparison.json`: one row per variant, and the table as Markdown.

    Raises:
        UsageError: a run cannot be done as asked, or a finished one's files are not as it wrote or read them or it was
            done with other versions, on another machine or by other backends; found before the first one begins.
    """
    check_alone("a comparison")
    if not variants or not seeds:
        raise UsageError("a comparison needs at least one method, one choice of kernels and one seed")
    max_length = get_task(template.task).max_length
    plan = [(variant, seed, _arguments(template, variant, seed)) for seed in seeds for variant in variants]
    for _, _, args in plan:
        args.check()
        RunDirectory(args.output_dir).check(
            asdict(args.resolved(max_length)), resume=args.resume, overwrite=args.overwrite_output_dir
        )
    _check_finished([args for _, _, args in plan])

    from .finetune import finetune
    from .plots import plot_comparison
    from .pretrain import pretrain

    execute: Callable[[Any], dict[str, Any]] = pretrain if isinstance(template, PretrainArguments) else finetune
    results: dict[Variant, dict[int, dict[str, Any]]] = {(method, kernels): {} for method, kernels in variants}
    for number, ((method, kernels), seed, args) in enumerate(plan, start=1):
        logger.info("run %d of %d: %s, kernels %s, seed %d", number, len(plan), method, kernels, seed)
        results[method, kernels][seed] = execute(args)
    comparison = summarize(results)
    root = Path(template.output_dir)
    write_json(root / "comparison.json", comparison)
    write_bytes(root / "comparison.md", comparison["markdown"].encode())
    plot_comparison({_name(v, seed): done for v, runs in results.items() for seed, done in runs.items()}, root / PLOT)
    return comparison


def _arguments(template: RunArguments, variant: Variant, seed: int) -> RunArguments:
    method, kernels = variant
    if method not in COMPARED_METHODS:
        raise UsageError(f"--methods: expected one of {', '.join(COMPARED_METHODS)}, found {method}")
    if kernels not in KERNELS:
        raise UsageError(f"--kernels: expected one of {', '.join(KERNELS)}, found {kernels}")
    changes: dict[str, Any] = {
        "method": method.removesuffix("-short"),
        "kernels": kernels,
        "seed": seed,
        "output_dir": str(Path(template.output_dir) / _name(variant, seed)),
        "resume": template.resume or not template.overwrite_output_dir,
    }
    args = replace(template, **changes)
    if method != "dense-short":
        return args
    if template.num_train_epochs is not None or template.max_steps is not None:
        raise UsageError(
            "--methods dense-short is dense training for a ticket's epochs; with --num-train-epochs or "
            "--max-steps every method is trained alike, and dense-short would be dense"
        )
    return replace(args, num_train_epochs=replace(template, method="earlybert").epochs)


def _name(variant: Variant, seed: int) -> str:
    return f"{'-'.join(variant)}-seed{seed}"


def _check_finished(runs: Sequence[RunArguments]) -> None:
    """Checks finished runs against each other, and against what those that are still to do will be done with."""
    records, to_do = [], {}
    for args in runs:
        directory = RunDirectory(args.output_dir)
        if args.resume and directory.is_finished:
            records.append((f"run {directory.path.name}", args.kernels, directory.read_finished(asdict(args))))
        else:
            to_do[args.kernels] = args
    if records and to_do:
        from .preparation import environment

        records += [("a run that begins now", kernels, environment(args)) for kernels, args in to_do.items()]
    _check_alike(records)


def _check_alike(records: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
    """Raises UsageError unless all runs share versions and machine, and backends where they share the kernels.

    Args:
        records: of each run what to call it, its kernels, and its `versions`, `machine` and `backend`.
    """
    seen: dict[Any, tuple[str, dict[str, Any]]] = {}
    for name, kernels, record in records:
        for what, group in (("versions", None), ("machine", None), ("backend", kernels)):
            values = record[what]
            first, expected = seen.setdefault((what, group), (name, values))
            differing = sorted(key for key in {*values, *expected} if values.get(key) != expected.get(key))
            if differing:
                ours, theirs = (", ".join(f"{key} {side.get(key)}" for key in differing) for side in (values, expected))
                raise UsageError(
                    f"{name} and {first} cannot be compared: the {what} of one is {ours}, of the other {theirs}; "
                    "repeat the runs with --overwrite-output-dir, or give another --output-dir"
                )


def summarize(results: dict[Variant, dict[int, dict[str, Any]]]) -> dict[str, Any]:
    """The table of a comparison.

    Args:
        results: variant -> seed -> what `finetune` returned.

    Returns:
        `rows`, `kernel_speedup` (same method, stock over ours), `pruning_speedup` (same kernels, dense over
        the method), `verdicts` on the drawn ticket, `noise` (a sentence, where there is but one seed),
        `warnings` (of the runs, each with the run's name) and all of it as `markdown`. Ratios of seconds are
        between runs of the same seed, and the median over the seeds. The ticket beats random only where at
        least `MIN_SEEDS` seeds were run and the mean gain, seed by seed, exceeds `MIN_STANDARD_ERRORS` of its
        standard errors.

    Raises:
        UsageError: the runs were done with different versions, machines or backends.
    """
    _check_alike(
        [(f"run {_name(v, seed)}", v[1], metrics) for v, runs in results.items() for seed, metrics in runs.items()]
    )
    any_run = next(iter(next(iter(results.values())).values()))
    metric = any_run["main_metric"]
    rows = []
    for (method, kernels), runs in results.items():
        quality = [run["eval"][metric] for run in runs.values()]
        rows.append(
            {
                "method": method,
                "kernels": kernels,
                "seeds": list(runs),
                "quality": statistics.mean(quality),
                "quality_std": statistics.stdev(quality) if len(quality) > 1 else None,
                "quality_by_seed": quality,
                "seconds": {
                    stage: statistics.median(run["seconds"][stage] for run in runs.values())
                    for stage in ("search", "train", "total")
                },
                "parameters": next(iter(runs.values()))["parameters"]["trained"],
                "seconds_over_stock_dense": _ratio(results, (method, kernels), ("dense", "off")),
            }
        )
    comparison = {
        "task": any_run["task"],
        "model": any_run["model"],
        "machine": any_run["machine"],
        "versions": any_run["versions"],
        "metric": metric,
        "rows": rows,
        "kernel_speedup": _speedups(results, lambda method, kernels: ((method, "off"), (method, "auto"))),
        "pruning_speedup": _speedups(results, lambda method, kernels: (("dense", kernels), (method, kernels))),
        "verdicts": _verdicts(results, metric),
        "noise": _noise(
            rows,
            metric,
            next(iter(any_run["examples"]["eval"].values())) if get_task(any_run["task"]).counts_examples else None,
        ),
        "warnings": [
            f"{_name(variant, seed)}: {warning}"
            for variant, runs in results.items()
            for seed, run in runs.items()
            for warning in run.get("warnings", [])
        ],
    }
    return comparison | {"markdown": _markdown(comparison)}


def _ratio(results: dict, numerator: Variant, denominator: Variant) -> float | None:
    """Median over the seeds of total seconds over total seconds; None where a side is not there."""
    above, below = results.get(numerator), results.get(denominator)
    if above is None or below is None:
        return None
    return statistics.median(above[seed]["seconds"]["total"] / below[seed]["seconds"]["total"] for seed in above)


def _speedups(results: dict, sides: Any) -> list[dict[str, Any]]:
    """For every pair of variants that `sides` names: how many times faster the second was, by the table's ratio."""
    found = {}
    for method, kernels in results:
        slow, fast = sides(method, kernels)
        ratio = _ratio(results, fast, slow)
        if slow != fast and ratio is not None:
            found[slow, fast] = {"of": "-".join(fast), "over": "-".join(slow), "times": 1 / ratio}
    return list(found.values())


def _verdicts(results: dict, metric: str) -> list[str]:
    """One plain sentence per choice of kernels on whether the drawn ticket is better than a random one."""
    verdicts = []
    for kernels in KERNELS:
        drawn, random = results.get(("earlybert", kernels)), results.get(("random", kernels))
        if drawn is None or random is None:
            continue
        gains = [drawn[seed]["eval"][metric] - random[seed]["eval"][metric] for seed in drawn]
        gain, wins, count = statistics.mean(gains), sum(g > 0 for g in gains), len(gains)
        error = statistics.stdev(gains) / count**0.5 if count > 1 else None
        what = (
            f"kernels {kernels}: the drawn ticket minus the random one is {gain:+.4f} {metric} on average, standard "
            f"error {'unknown' if error is None else format(error, '.4f')}, n = {count}, ahead with {wins}"
        )
        if gain <= 0:
            verdict = "The ticket does not beat random"
        elif error is None or count < MIN_SEEDS:
            verdict = f"The ticket is ahead of random, but with fewer than {MIN_SEEDS} seeds, which proves nothing"
        elif gain <= MIN_STANDARD_ERRORS * error:
            verdict = f"The ticket is not ahead of random by more than {MIN_STANDARD_ERRORS} standard errors"
        else:
            verdict = f"The ticket beats random, by more than {MIN_STANDARD_ERRORS} standard errors"
        verdicts.append(f"{verdict} ({what}).")
    return verdicts


def _noise(rows: list[dict[str, Any]], metric: str, examples: int | None) -> str | None:
    """How far apart qualities must be to mean anything; None with several seeds, whose spread the table shows.

    Args:
        rows: of the table.
        metric: what the quality is.
        examples: that it is the mean over; None where it is no such mean.
    """
    if len(rows[0]["seeds"]) > 1:
        return None
    if metric != "accuracy" or examples is None:  # no share of right answers, so that the formula does not hold
        return f"With one seed, small differences of {metric} are noise."
    noise = max((row["quality"] * (1 - row["quality"]) / examples) ** 0.5 for row in rows)
    return (
        f"With one seed, differences of {metric} within about {noise:.4f} are noise: sqrt(q(1-q)/n) of a quality q "
        f"on n = {examples} evaluation examples."
    )


def _sentence(speedup: dict[str, Any]) -> str:
    times, what = speedup["times"], "fast"
    if times < 1:
        times, what = 1 / times, "slow"
    return f"{speedup['of']} is {times:.2f} times as {what} as {speedup['over']}"


def _markdown(comparison: dict[str, Any]) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in comparison["machine"].items())
    versions = ", ".join(f"{name} {value}" for name, value in comparison["versions"].items())
    has_stock = all(row["seconds_over_stock_dense"] is not None for row in comparison["rows"])
    lines = [
        f"Task {comparison['task']}, model {comparison['model']}.",
        f"Machine: {machine}. Versions: {versions}.",
        f"Seeds: {', '.join(map(str, comparison['rows'][0]['seeds']))}. Quality is mean ± standard deviation "
        "over the seeds, seconds are medians." + (_OF_STOCK if has_stock else ""),
        "",
        f"| method | kernels | {comparison['metric']} | search s | train s | total s | parameters |"
        + (" of stock dense |" if has_stock else ""),
        "|---|---|---|---|---|---|---|" + ("---|" if has_stock else ""),
    ]
    for row in comparison["rows"]:
        spread = "" if row["quality_std"] is None else f" ± {row['quality_std']:.4f}"
        ratio = row["seconds_over_stock_dense"]
        seconds = row["seconds"]
        lines.append(
            f"| {row['method']} | {row['kernels']} | {row['quality']:.4f}{spread} | {seconds['search']:.1f} "
            f"| {seconds['train']:.1f} | {seconds['total']:.1f} | {row['parameters']:,} |"
            + (f" {ratio:.2f} |" if has_stock else "")
        )
    for title, name in (("Kernels", "kernel_speedup"), ("Pruning", "pruning_speedup")):
        if comparison[name]:
            speedups = map(_sentence, comparison[name])
            lines += ["", f"{title}: {'; '.join(speedups)}."]
    for sentence in (*comparison["verdicts"], comparison["noise"]):
        if sentence is not None:
            lines += ["", sentence]
    if comparison["warnings"]:
        lines += ["", "Warnings:", "", *(f"- {warning}" for warning in comparison["warnings"])]
    return "\n".join(lines) + "\n"
