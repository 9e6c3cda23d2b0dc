"""Pictures of several runs, as SVG that takes the colours of the page around it."""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from .plots import INK, STYLE
from .summary import mean_and_error

#: Colours that the colour-blind tell apart (Okabe and Ito), none of them near black or white; markers differ as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "os^DvP*X<>hp"
LINES = ("-", "--", "-.", ":")
#: Inches, of a figure that is still read on a phone.
WIDTH = 5.4

#: Runs by arm.
ByArm = Mapping[str, Sequence[Mapping[str, Any]]]


@rc_context(STYLE)
def svg(figure: Figure, number: int) -> str:
    """A figure as an element of a page.

    Args:
        figure: drawn with `STYLE`.
        number: of the figure on its page, which makes its ids its own.
    """
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_visible(False)
    file = io.StringIO()
    FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>f{number}-", text)
    # The font is the page's, and the ink too.
    text = re.sub(r"font: [^;\"]*?([\d.]+px) [^;\"]*", r"font-size: \1", text)
    return text.replace(INK, "currentColor")


def look(number: int) -> dict[str, Any]:
    """How the arm of that number is drawn."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number // len(COLOURS) % len(LINES)],
    }


@rc_context(STYLE)
def quality_figure(arms: ByArm, metric: str) -> Figure:
    """Quality against seconds: every seed as a point, and the mean with its standard error.

    Args:
        arms: of one task.
        metric: the quality's name.
    """
    figure, axes = _figure(3.6, len(arms))
    for number, (arm, runs) in enumerate(arms.items()):
        seconds, quality = ([run["seconds"]["total"] for run in runs], [run["quality"] for run in runs])
        style = look(number) | {"linestyle": "none"}
        axes.plot(seconds, quality, alpha=0.35, markersize=4, **style)
        mean, error = mean_and_error(quality)
        axes.errorbar([statistics.mean(seconds)], [mean], yerr=error or 0, markersize=7, capsize=3, label=arm, **style)
    axes.set(xlabel="seconds of search and training", ylabel=metric, xlim=(0, None))
    _legend(figure, len(arms))
    return figure


@rc_context(STYLE)
def loss_figure(arms: ByArm) -> Figure:
    """The loss while training against optimizer steps, of every seed.

    Args:
        arms: of one task; runs with `metrics`, their `metrics.json`.
    """
    figure, axes = _figure(3.0, len(arms))
    for number, (arm, runs) in enumerate(arms.items()):
        for first, run in enumerate(runs):
            log = run["metrics"]["train_log"]
            steps, losses = [record["step"] for record in log], [record["loss"] for record in log]
            label = None if first else arm
            axes.plot(steps, losses, alpha=0.8, linewidth=1, markersize=3, label=label, **look(number))
    axes.set(xlabel="optimizer step of training", ylabel="loss", xlim=(0, None))
    _legend(figure, len(arms))
    return figure


@rc_context(STYLE)
def seconds_figure(arms: ByArm) -> Figure:
    """Where the seconds went, means over the seeds.

    Args:
        arms: of one task; runs with `metrics`.
    """
    stages = {"search": "", "train": "", "loading": "///", "tokenizing": "...", "evaluation": "xxx"}
    figure, axes = _figure(0.9 + 0.28 * len(arms), len(stages))
    left = np.zeros(len(arms))
    shades = ("0.25", "0.6", "0.75", "0.85", "0.92")
    for (stage, hatch), shade in zip(stages.items(), shades, strict=True):
        values = [statistics.mean(run["metrics"]["seconds"][stage] for run in runs) for runs in arms.values()]
        axes.barh(range(len(arms)), values, left=left, color=shade, hatch=hatch, edgecolor="0.4", label=stage)
        left += values
    axes.set(xlabel="seconds", yticks=range(len(arms)), yticklabels=list(arms))
    axes.invert_yaxis()
    _legend(figure, len(stages), columns=3)
    return figure


@rc_context(STYLE)
def widths_figure(arms: ByArm) -> Figure:
    """The share of heads and of neurons that each layer keeps, in percent, means over the seeds.

    Args:
        arms: of one task; runs with `metrics` whose `ticket` is there.
    """
    figure = Figure(figsize=(WIDTH, 1.3 + 0.5 * len(arms)), layout="constrained")
    for axes, units in zip(figure.subplots(2, 1), ("heads", "neurons"), strict=True):
        shares = []
        for runs in arms.values():
            tickets = [run["metrics"]["ticket"] for run in runs]
            shares.append(np.mean([np.divide(ticket[units], ticket[f"{units}_of"]) for ticket in tickets], axis=0))
        grid = 100 * np.asarray(shares)
        axes.pcolormesh(grid, cmap="Greys", vmin=0, vmax=100, edgecolors="0.5", linewidth=0.5)
        for row, column in np.ndindex(*grid.shape):
            share = grid[row, column]
            colour = "white" if share > 55 else "black"
            axes.text(column + 0.5, row + 0.5, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=7)
        places = np.arange(grid.shape[1]) + 0.5
        axes.set(xticks=places, xticklabels=range(grid.shape[1]), yticks=np.arange(len(arms)) + 0.5)
        axes.set_yticklabels(list(arms))
        axes.set_title(f"{units} kept, % of each layer's")
        axes.grid(False)
        axes.invert_yaxis()
    axes.set_xlabel("layer")
    return figure


def _figure(height: float, entries: int) -> tuple[Figure, Any]:
    """A figure with one picture of that height, in inches, and place for a legend below."""
    figure = Figure(figsize=(WIDTH, height + 0.17 * ((entries + 1) // 2)), layout="constrained")
    return figure, figure.subplots()


def _legend(figure: Figure, entries: int, columns: int = 2) -> None:
    if entries > 1:
        figure.legend(loc="outside lower center", ncols=columns)
