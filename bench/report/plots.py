"""Pictures of results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from earlybert.files import replacing

from .tables import Result, problem_of

_BAR_INCHES = 0.26

#: Colours of steps, by whose modules compute them and whether all units are there.
_STOCK, _DENSE, _TICKET = "stock modules", "this library", "this library, with a ticket"
_COLOURS = {_STOCK: "C7", _DENSE: "C0", _TICKET: "C2"}


def micro_figure(rows: Sequence[Result]) -> Figure:
    """Ratios to eager of one op's rows, with quartiles; shorter is faster."""
    names = [
        "-".join(str(row[key]) for key in ("shape", "lengths", "unit", "mode", "provider") if row[key] is not None)
        for row in rows
    ]
    providers = list(dict.fromkeys(row["provider"] for row in rows))
    colours = [f"C{providers.index(row['provider'])}" for row in rows]
    # A gap between problems.
    problems = list(dict.fromkeys(map(problem_of, rows)))
    places = [number + 0.6 * problems.index(problem_of(row)) for number, row in enumerate(rows)]
    return _bars(
        names, places, [row["ratio"] for row in rows], colours, title=rows[0]["op"],
        xlabel="time, of eager's in the same round",
    )  # fmt: skip


def step_figure(result: Result) -> Figure:
    """Milliseconds of each variant's step, with quartiles."""
    return _variants_figure(result, "Training step")


def forward_figure(result: Result) -> Figure:
    """Milliseconds of each variant's forward, with quartiles."""
    return _variants_figure(result, "Forward")


def _variants_figure(result: Result, name: str) -> Figure:
    variants = result["variants"]
    arguments = result["arguments"]
    times = [{key: 1e3 * value for key, value in v["time"].items()} for v in variants.values()]
    what = Path(arguments["model"]).name if arguments["model"] else arguments["shape"]
    title = f"{name}: {what}, lengths {arguments['lengths']}, padding {arguments['padding']}"
    kinds = [_kind(name) for name in variants]
    figure = _bars(
        list(variants), list(range(len(times))), times, [_COLOURS[kind] for kind in kinds], title=title,
        xlabel="milliseconds",
    )  # fmt: skip
    shown = [Patch(color=colour, label=kind) for kind, colour in _COLOURS.items() if kind in kinds]
    figure.axes[0].legend(handles=shown, fontsize="small")
    return figure


def _kind(variant: str) -> str:
    """What a variant of `bench.step.variants` is drawn as."""
    if "stock" in variant:
        return _STOCK
    return _TICKET if variant.startswith("ticket") else _DENSE


def end_to_end_figure(result: Result) -> Figure:
    """Quality over seconds of every row, the quality with its standard deviation."""
    comparison = result["comparison"]
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for row in comparison["rows"]:
        axes.errorbar(
            row["seconds"]["total"],
            row["quality"],
            yerr=row["quality_std"] or 0.0,
            fmt="o" if row["kernels"] == "auto" else "s",
            label=f"{row['method']}, kernels {row['kernels']}",
        )
    axes.set(xlabel="seconds, search included", ylabel=comparison["metric"], xlim=(0, None), title=comparison["task"])
    axes.legend(fontsize="small")
    return figure


def _bars(
    names: list[str],
    places: list[float],
    values: list[dict[str, float]],
    colours: list[str],
    *,
    title: str,
    xlabel: str,
) -> Figure:
    figure = Figure(figsize=(9, 1.2 + _BAR_INCHES * (places[-1] + 1)), layout="constrained")
    axes = figure.subplots()
    medians = [value["median"] for value in values]
    below = [value["median"] - value["q1"] for value in values]
    above = [value["q3"] - value["median"] for value in values]
    bars = axes.barh(places, medians, color=colours, xerr=[below, above], ecolor="black", capsize=2)
    axes.bar_label(bars, fmt="%.2f", padding=4, fontsize="small")
    axes.set(yticks=places, yticklabels=names, xlabel=xlabel, title=title)
    axes.tick_params(axis="y", labelsize="small")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Writes a PNG file and returns its path."""
    # A canvas of its own, and not pyplot, which would choose a window system for the whole process.
    with replacing(path) as partial:
        FigureCanvasAgg(figure).print_png(partial)
    return path
