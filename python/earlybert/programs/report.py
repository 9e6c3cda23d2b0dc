"""A page on a run, a comparison or a study that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from ..arguments import KERNELS
from ..errors import MissingFileError, UsageError
from ..files import read_json, write_bytes
from ..run_directory import FREE_ARGUMENTS, RunDirectory
from .budget import Budget
from .plots import curve_figure, search_figure, ticket_figure
from .report_figures import loss_figure, quality_figure, seconds_figure, svg, widths_figure
from .summary import ALL_TASKS, record, tables, verdict

#: What a report is called in the folder that it is of.
REPORT = "report.html"
#: Arguments that say which run it is, and not how it is done.
_OF_A_RUN = (*FREE_ARGUMENTS, "seed", "search_from", "discard_model", "overwrite_output_dir")


@dataclass(frozen=True)
class _Subject:
    """What a report is on.

    Attributes:
        kind: run, comparison or study.
        runs: records as `summary.record` makes them, each with `metrics` and `directory`.
        baseline: the arm that others are compared with.
        notes: sentences on what was found beside.
    """

    kind: str
    runs: list[dict[str, Any]]
    baseline: str
    notes: list[str]


def report(folder: str) -> Path:
    """Writes `report.html` into the folder of a run, a comparison or a study, and returns its path.

    The page has all that it shows in itself: no scripts, and nothing that is read from elsewhere.

    Raises:
        UsageError: the folder holds none of them, or no run in it is finished, or its files are not as they were
            written.
    """
    root = Path(folder)
    try:
        content = _page(root, _read(root))
    except (LookupError, TypeError) as error:  # of files that were changed
        raise UsageError(f"{folder}: not as it was written: {type(error).__name__} {error}") from error
    path = root / REPORT
    write_bytes(path, content.encode())
    return path


def _read(root: Path) -> _Subject:
    if (root / "results.json").exists():
        results = read_json(root / "results.json")
        runs = [_run(root / "runs" / run["folder"], run["task"], run["arm"]) for run in results["runs"]]
        subject = _Subject("study", runs, results["baseline"], [f"Failed: {each}" for each in results["failures"]])
    elif (root / "comparison.json").exists():
        found = read_json(root / "comparison.json")
        variants = [(row["method"], row["kernels"], row["seeds"]) for row in found["rows"]]
        runs = [
            _run(root / f"{m}-{k}-seed{seed}", found["task"], f"{m}-{k}") for m, k, seeds in variants for seed in seeds
        ]
        arms = [run["arm"] for run in runs]
        dense = [f"dense-{kernels}" for kernels in KERNELS if f"dense-{kernels}" in arms]
        notes = [*found["verdicts"], *([] if found["noise"] is None else [found["noise"]])]
        subject = _Subject("comparison", runs, (dense or arms)[0], notes)
    elif RunDirectory(root).is_finished:
        run = _run(root, None, None)
        subject = _Subject("run", [run], run["arm"], [])
    else:
        raise MissingFileError(f"{root}: expected the folder of a finished run, a comparison or a study")
    if not subject.runs:
        raise MissingFileError(f"{root}: no run of this study is finished")
    return subject


def _run(folder: Path, task: str | None, arm: str | None) -> dict[str, Any]:
    directory = RunDirectory(folder)
    metrics = directory.read_metrics()
    directory.check_read(directory.metrics)
    made = record(task or metrics["task"], arm or metrics["method"], folder.name, metrics)
    return made | {"metrics": metrics, "directory": directory}


def _page(root: Path, subject: _Subject) -> str:
    found = tables(subject.runs, subject.baseline)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = count()
    by_task: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for run in subject.runs:
        by_task.setdefault(run["task"], {}).setdefault(run["arm"], []).append(run)
    pictures = {
        task: [(title, Markup(svg(figure, next(numbers)))) for title, figure in _pictures(arms)]
        for task, arms in by_task.items()
    }
    differing, common = _settings(subject)
    return environment.get_template("report.html.j2").render(
        title=f"{subject.kind.capitalize()} {root.resolve().name}",
        sentence=_sentence(subject, found),
        notes=[*subject.notes, *_budgets(subject), *_warnings(subject)],
        baseline=subject.baseline if len(subject.runs) > 1 else None,
        tables={task: [_table_row(row, by_task, task) for row in rows] for task, rows in found.items()},
        scales={task: _scale(by_task, task) for task in found if task != ALL_TASKS},
        metrics={
            task: next(iter(by_task[task].values()))[0]["metric"] if task in by_task else "quality" for task in found
        },
        pictures=pictures,
        differing=differing,
        common=common,
        environments=_environments(subject),
    )


def _sentence(subject: _Subject, found: Mapping[str, Any]) -> str:
    if subject.kind != "run":
        return verdict(found, subject.baseline)
    (run,) = subject.runs
    seconds, parameters = run["seconds"], run["parameters"]
    return (
        f"Method {run['arm']} on {run['task']}: {run['metric']} {run['quality']:.4f} after {seconds['total']:.1f} s, "
        f"{seconds['search']:.1f} s of them the search, with {parameters['trained']:,} of {parameters['dense']:,} "
        "parameters."
    )


def _budgets(subject: _Subject) -> list[str]:
    """Of each run that was to become faster by some number, what came of it."""
    found = [(run["folder"], run["metrics"].get("budget")) for run in subject.runs]
    budgets = [(folder, Budget(**budget)) for folder, budget in found if budget is not None]
    return [f"{folder}: {budget.sentence}." for folder, budget in budgets if budget.target_speedup is not None]


def _warnings(subject: _Subject) -> list[str]:
    return [f"{run['folder']}: {warning}" for run in subject.runs for warning in run["warnings"]]


def _table_row(row: dict[str, Any], by_task: Mapping[str, Any], task: str) -> dict[str, Any]:
    """A row of the table, with every seed's quality."""
    return row | {"points": [run["quality"] for run in by_task.get(task, {}).get(row["arm"], [])]}


def _scale(by_task: Mapping[str, Any], task: str) -> tuple[float, float]:
    """The least and the largest quality of a task, a little apart where they are the same."""
    values = [run["quality"] for runs in by_task[task].values() for run in runs]
    return min(values) - 1e-6, max(values) + 1e-6


def _pictures(arms: Mapping[str, list[dict[str, Any]]]) -> Iterator[tuple[str, Figure]]:
    """The pictures of one task, each with what it is of."""
    runs = [run for each in arms.values() for run in each]
    if len(runs) > 1:
        yield "Quality against seconds", quality_figure(arms, runs[0]["metric"])
    if any(run["metrics"]["train_log"] for run in runs):
        yield "Loss while training", loss_figure(arms)
    if len(runs) == 1 and runs[0]["metrics"]["curve"]:
        yield "Evaluations while training", curve_figure({"": runs[0]["metrics"]["curve"]}, runs[0]["metric"])
    yield from _searches(runs)
    tickets = {arm: kept for arm, each in arms.items() if (kept := [run for run in each if run["metrics"]["ticket"]])}
    if len(runs) == 1 and tickets:
        ticket = runs[0]["metrics"]["ticket"]
        directory = runs[0]["directory"]
        directory.check_read(directory.ticket)
        yield "The ticket", ticket_figure(directory.read_ticket(), ticket["heads_of"], ticket["neurons_of"])
    elif tickets:
        yield "What tickets keep", widths_figure(tickets)
    yield "Where the seconds went", seconds_figure(arms)


def _searches(runs: list[dict[str, Any]]) -> Iterator[tuple[str, Figure]]:
    """The searches of the first seed, each once."""
    searches: list[tuple[dict[str, Any], list[str]]] = []
    for run in runs:
        search = run["metrics"]["search"]
        if search is None or run["seed"] != runs[0]["seed"]:
            continue
        arms = next((names for known, names in searches if known["log"] == search["log"]), None)
        if arms is None:
            searches.append((search, [run["arm"]]))
        else:
            arms.append(run["arm"])
    for search, names in searches:
        yield f"The search of {', '.join(names)}, seed {runs[0]['seed']}", search_figure(search)


def _settings(subject: _Subject) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The arguments in which arms differ, by argument and arm; and those that all runs have in common."""
    arguments = {run["arm"]: run["arguments"] for run in reversed(subject.runs)}
    arms = list(dict.fromkeys(run["arm"] for run in subject.runs))
    names = [name for name in subject.runs[0]["arguments"] if name not in _OF_A_RUN]
    differing, common = {}, {}
    for name in names:
        values = {arm: arguments[arm].get(name) for arm in arms}
        if any(value != values[arms[0]] for value in values.values()):
            differing[name] = values
        elif all(run["arguments"].get(name) == values[arms[0]] for run in subject.runs):
            common[name] = values[arms[0]]
    return differing, common


def _environments(subject: _Subject) -> list[dict[str, Any]]:
    """What the runs were done with, each once."""
    found: list[dict[str, Any]] = []
    for run in subject.runs:
        made = {**run["machine"], **run["versions"], "commit": run["commit"], **run["metrics"]["backend"]}
        if made not in found:
            found.append(made)
    return found
