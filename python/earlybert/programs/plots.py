"""Pictures of a run: how its ticket moved and came to rest, and what it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import earlybert_kernels as ek

from ..errors import UsageError
from ..files import replacing
from ..run_directory import RunDirectory

#: Of texts and axes.
INK = "#010203"
#: How all pictures look. Lines differ in markers too, so that they are told apart in grey.
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


def plot(path: str) -> list[Path]:
    """Draws the pictures of a finished run again and returns their files: none for a dense run.

    Raises:
        UsageError: the folder holds no finished run, or its files are not as the run wrote them.
    """
    directory = RunDirectory(path)
    metrics = directory.read_metrics()
    directory.check_read(directory.metrics, *([] if metrics["ticket"] is None else [directory.ticket]))
    ticket = None if metrics["ticket"] is None else directory.read_ticket()
    try:
        return plot_run(directory, metrics, ticket)
    except (LookupError, TypeError) as error:  # of a folder without checksums
        raise UsageError(f"{directory.metrics}: not as a run writes it: {type(error).__name__} {error}") from error


def plot_run(directory: RunDirectory, metrics: dict[str, Any], ticket: ek.Ticket | None) -> list[Path]:
    """Draws what there is to draw of a run into its folder.

    Args:
        directory: the run's folder.
        metrics: as in its `metrics.json`.
        ticket: the ticket it trained; None for a dense run.

    Returns:
        The files written: `search.png` if the run searched, `ticket.png` if it has a ticket, `curve.png` if it was
        evaluated while it trained.
    """
    written = []
    if metrics["search"] is not None:
        _save(search_figure(metrics["search"]), directory.search_plot)
        written.append(directory.search_plot)
    if ticket is not None:
        kept = metrics["ticket"]
        _save(ticket_figure(ticket, kept["heads_of"], kept["neurons_of"]), directory.ticket_plot)
        written.append(directory.ticket_plot)
    if metrics.get("curve"):
        _save(curve_figure({"": metrics["curve"]}, metrics["main_metric"]), directory.curve_plot)
        written.append(directory.curve_plot)
    return written


def plot_comparison(runs: Mapping[str, dict[str, Any]], path: Path) -> None:
    """Draws the evaluations while training of several runs into one picture; removes it if a run has no such.

    Args:
        runs: by name, as in their `metrics.json`.
        path: the file.
    """
    curves = {name: metrics.get("curve") or [] for name, metrics in runs.items()}
    path.unlink(missing_ok=True)  # of a comparison before
    if all(curves.values()):
        _save(curve_figure(curves, next(iter(runs.values()))["main_metric"]), path)


@rc_context(STYLE)
def curve_figure(curves: Mapping[str, list[dict[str, Any]]], main_metric: str) -> Figure:
    """The evaluations while training against optimizer steps and against seconds.

    Args:
        curves: by the name of the run, which is empty where there is but one, entry `curve` of `metrics.json`.
        main_metric: what is drawn beside the loss, which runs of earlier versions may not have.
    """
    names = [n for n in ("eval_loss", main_metric) if all(n in curve[0] for curve in curves.values())]
    figure = Figure(figsize=(9, 3.2 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), 2, sharex="col", sharey="row", squeeze=False)
    for row, name in zip(grid, names, strict=True):
        for axes, against in zip(row, ("step", "seconds"), strict=True):
            for label, curve in curves.items():
                axes.plot([entry[against] for entry in curve], [entry[name] for entry in curve], ".-", label=label)
            axes.set(xlim=(0, None))
        row[0].set(ylabel=name)
    grid[-1, 0].set(xlabel="optimizer step")
    grid[-1, 1].set(xlabel="seconds, search included")
    figure.suptitle("Evaluations while training")
    if len(curves) > 1:
        grid[0, 0].legend()
    return figure


@rc_context(STYLE)
def search_figure(search: dict[str, Any]) -> Figure:
    """Distance between consecutive tickets over the steps of the search, as a share of chance level.

    Args:
        search: entry `search` of `metrics.json`.
    """
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    steps = [check["step"] for check in search["checks"]]
    axes.plot(steps, [check["heads"] for check in search["checks"]], "o-", label="heads")
    axes.plot(steps, [check["neurons"] for check in search["checks"]], "s-", label="neurons")
    axes.axhline(search["threshold"], color="grey", linestyle="--", label="threshold")
    axes.axvline(search["step"], color=INK, linestyle=":", label=f"drawn ({search['drawn_by']})")
    axes.set(
        xlabel="optimizer step",
        ylabel="distance to the ticket before\n(1 = chance)",
        xlim=(0, search["max_steps"] * 1.02),
        ylim=(0, None),
        title="How far the ticket moved from check to check",
    )
    if not search["checks"]:
        axes.text(
            0.5, 0.5, f"no two tickets were compared in {search['step']} steps,\nat {search['interval']} a check",
            transform=axes.transAxes, ha="center", va="center",
        )  # fmt: skip
    axes.legend()
    return figure


@rc_context(STYLE)
def ticket_figure(ticket: ek.Ticket, num_heads: list[int], num_neurons: list[int]) -> Figure:
    """Which heads a ticket keeps, and how many neurons, layer by layer.

    Args:
        ticket: what to show.
        num_heads: heads per layer of the dense model.
        num_neurons: neurons per layer of the dense model.
    """
    layers = len(num_heads)
    figure = Figure(figsize=(9, 1.6 + 0.3 * layers), layout="constrained")
    left, right = figure.subplots(1, 2)

    grid = np.full((layers, max(num_heads)), np.nan)
    for layer, (kept, count) in enumerate(zip(ticket.heads, num_heads, strict=True)):
        grid[layer, :count] = 0
        grid[layer, kept] = 1
    left.pcolormesh(grid, cmap="Blues", vmin=-0.2, vmax=1.3, edgecolors="white", linewidth=1.5)
    left.set(
        xlabel="head",
        ylabel="layer",
        xticks=np.arange(max(num_heads)) + 0.5,
        xticklabels=range(max(num_heads)),
        yticks=np.arange(layers) + 0.5,
        yticklabels=range(layers),
        title=f"Heads: {sum(map(len, ticket.heads))} of {sum(num_heads)} kept (dark)",
    )

    right.barh(range(layers), num_neurons, color="whitesmoke", edgecolor="lightgrey")
    bars = right.barh(range(layers), [len(kept) for kept in ticket.neurons], color="steelblue")
    right.bar_label(bars, padding=3)
    right.set(
        xlabel="neurons",
        yticks=range(layers),
        title=f"Neurons: {sum(map(len, ticket.neurons))} of {sum(num_neurons)} kept",
    )
    left.grid(False)
    for axes in (left, right):
        axes.invert_yaxis()
    return figure


@rc_context(STYLE)
def write_png(figure: Figure, file: Path | BinaryIO) -> None:
    """Writes a figure as PNG."""
    # A canvas of its own, and not pyplot, which would choose a window system for the whole process.
    FigureCanvasAgg(figure).print_png(file)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as partial:
        write_png(figure, partial)
