"""What the runs of a study come to: means, standard errors, and differences seed by seed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: What the table over all tasks is called; tasks have lower-case names.
ALL_TASKS = "All tasks"

#: A difference counts when it has been seen with so many seeds and is more than so many standard errors.
MIN_SEEDS = 3
MIN_STANDARD_ERRORS = 2


def record(task: str, arm: str, folder: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What the results of a study say of a run.

    Args:
        task, arm: as the study calls them.
        folder: the run's, by its name.
        metrics: as in the run's `metrics.json`.
    """
    search = metrics["search"] or {}
    return {
        "task": task,
        "arm": arm,
        "seed": metrics["seed"],
        "folder": folder,
        "metric": metrics["main_metric"],
        "quality": metrics["eval"][metrics["main_metric"]],
        "eval": metrics["eval"],
        "seconds": metrics["seconds"],
        "steps": metrics["steps"],
        "parameters": metrics["parameters"],
        "drawn_by": search.get("drawn_by"),
        "warnings": metrics["warnings"],
        "machine": metrics["machine"],
        "versions": metrics["versions"],
        "commit": metrics["commit"],
        "arguments": metrics["arguments"],
    }


def tables(runs: Sequence[Mapping[str, Any]], baseline: str) -> dict[str, list[dict[str, Any]]]:
    """A table for each task, and where there are several one over all of them.

    Args:
        runs: the records of `results.json`.
        baseline: the arm that others are compared with, on the same task with the same seed.

    Returns:
        By task a row for each arm: `arm`; `seeds`; `quality`, the mean over the seeds, with `quality_error`, its
        standard error (None of one seed); `gain`, the mean difference to the baseline over the `pairs`, the seeds that
        both have, with `gain_error`, and `ahead`, the seeds with a positive one (None where there is no pair);
        `seconds`, means of the stages; `seconds_over_baseline`, the median ratio of total seconds; and the
        `parameters` that were trained. Over all tasks a seed's quality and seconds are the means of its tasks, and a
        seed counts where all of them are done.
    """
    by_task: dict[str, dict[str, dict[int, Mapping[str, Any]]]] = {}
    for run in runs:
        by_task.setdefault(run["task"], {}).setdefault(run["arm"], {})[run["seed"]] = run
    found = {task: _rows(arms, baseline) for task, arms in by_task.items()}
    if len(by_task) > 1:
        found[ALL_TASKS] = _rows(_over_tasks(list(by_task.values())), baseline)
    return found


def _over_tasks(
    tasks: Sequence[Mapping[str, Mapping[int, Mapping[str, Any]]]],
) -> dict[str, dict[int, Mapping[str, Any]]]:
    """By arm and seed the means over the tasks, where all of them are done."""
    means: dict[str, dict[int, Mapping[str, Any]]] = {}
    for arm in tasks[0]:
        done = [task.get(arm, {}) for task in tasks]
        for seed in [seed for seed in done[0] if all(seed in runs for runs in done)]:
            runs = [each[seed] for each in done]
            means.setdefault(arm, {})[seed] = {
                "quality": statistics.mean(run["quality"] for run in runs),
                "seconds": {
                    stage: statistics.mean(run["seconds"][stage] for run in runs)
                    for stage in ("search", "train", "total")
                },
                "parameters": {"trained": round(statistics.mean(run["parameters"]["trained"] for run in runs))},
            }
    return means


def _rows(arms: Mapping[str, Mapping[int, Mapping[str, Any]]], baseline: str) -> list[dict[str, Any]]:
    rows = []
    for arm, runs in arms.items():
        pairs = [(run, arms[baseline][seed]) for seed, run in runs.items() if seed in arms.get(baseline, {})]
        gains = [run["quality"] - base["quality"] for run, base in pairs]
        ratios = [run["seconds"]["total"] / base["seconds"]["total"] for run, base in pairs]
        quality, error = mean_and_error(run["quality"] for run in runs.values())
        gain, gain_error = mean_and_error(gains) if gains and arm != baseline else (None, None)
        rows.append(
            {
                "arm": arm,
                "seeds": list(runs),
                "quality": quality,
                "quality_error": error,
                "gain": gain,
                "gain_error": gain_error,
                "pairs": len(gains),
                "ahead": None if gain is None else sum(each > 0 for each in gains),
                "seconds": {
                    stage: statistics.mean(run["seconds"][stage] for run in runs.values())
                    for stage in ("search", "train", "total")
                },
                "seconds_over_baseline": statistics.median(ratios) if ratios else None,
                "parameters": next(iter(runs.values()))["parameters"]["trained"],
            }
        )
    return rows


def mean_and_error(values: Iterable[float]) -> tuple[float, float | None]:
    """The mean and its standard error, by the sample's standard deviation; None of a single value."""
    values = list(values)
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return statistics.mean(values), error


def markdown(results: Mapping[str, Any]) -> str:
    """The tables as `study.md` has them.

    Args:
        results: `tables`, the `baseline`'s name and `failures`.
    """
    baseline = results["baseline"]
    lines = [
        verdict(results["tables"], baseline),
        "",
        f"Quality is the mean over the seeds ± its standard error; minus {baseline}: the mean difference seed by seed "
        "± its standard error, and with how many seeds it is positive. Seconds are means, and of "
        f"{baseline} the median ratio of total seconds to its own with the same seed.",
        "",
    ]
    for task, rows in results["tables"].items():
        lines += [
            f"## {task}",
            "",
            f"| arm | seeds | quality | minus {baseline} | ahead | search s | train s | total s | of {baseline} "
            "| parameters |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            seconds, ratio = row["seconds"], row["seconds_over_baseline"]
            gain = "" if row["gain"] is None else f"{row['gain']:+.4f}{_plus_minus(row['gain_error'])}"
            lines.append(
                f"| {row['arm']} | {len(row['seeds'])} | {row['quality']:.4f}{_plus_minus(row['quality_error'])} "
                f"| {gain} | {'' if row['ahead'] is None else row['ahead']} | {seconds['search']:.1f} "
                f"| {seconds['train']:.1f} | {seconds['total']:.1f} | {'' if ratio is None else format(ratio, '.2f')} "
                f"| {row['parameters']:,} |"
            )
        lines.append("")
    if results["failures"]:
        lines += ["Failed:", "", *(f"- {failure}" for failure in results["failures"]), ""]
    return "\n".join(lines)


def verdict(tables: Mapping[str, Sequence[Mapping[str, Any]]], baseline: str) -> str:
    """One sentence: which arm is fastest among those that are as good as the baseline, if any is.

    As good is what is not worse by more than `MIN_STANDARD_ERRORS` standard errors, with at least `MIN_SEEDS` seeds.

    Args:
        tables: what `tables` gave; the table over all tasks counts, or the only one.
        baseline: the arm that others are compared with.
    """
    rows = tables.get(ALL_TASKS) or next(iter(tables.values()), [])
    compared = [row for row in rows if row["gain"] is not None]
    if not compared:
        return f"There is nothing yet to compare with {baseline}."
    faster = [row for row in compared if row["seconds_over_baseline"] < 1]
    if not faster:
        return f"No other arm is faster than {baseline}."
    known = [row for row in faster if row["pairs"] >= MIN_SEEDS]
    if not known:
        best = max(faster, key=lambda row: row["gain"])
        return (
            f"With fewer than {MIN_SEEDS} seeds nothing is proven: of the arms that are faster than {baseline}, "
            f"{best['arm']} is the best ({_difference(best)})."
        )
    good = [row for row in known if row["gain"] >= -MIN_STANDARD_ERRORS * row["gain_error"]]
    if not good:
        best = max(known, key=lambda row: row["gain"])
        return f"No arm faster than {baseline} is as good: the best of them is {best['arm']} ({_difference(best)})."
    fastest = min(good, key=lambda row: row["seconds_over_baseline"])
    return (
        f"As far as {fastest['pairs']} seeds can tell, {fastest['arm']} is the fastest arm that is as good as "
        f"{baseline} ({_difference(fastest)})."
    )


def _difference(row: Mapping[str, Any]) -> str:
    gain = f"{row['gain']:+.4f}{_plus_minus(row['gain_error'])}"
    return f"difference {gain}, {row['seconds_over_baseline']:.2f} of its seconds, n = {row['pairs']}"


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f" ± {error:.4f}"
