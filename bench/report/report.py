"""Turns the JSON files of all benchmarks into Markdown tables and pictures.

    python -m bench.report RESULTS.json [...] [--plots FOLDER]

Takes what `pytest bench/ --benchmark-json=FILE`, `python -m bench.step`, `bench.forward` and `bench.end_to_end` write.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from earlybert.errors import UsageError
from earlybert.files import read_json

from . import tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Name of the picture, Markdown, and how the picture is drawn.
Section = tuple[str, str, Callable[[], "Figure"]]

_MICRO_NOTE = (
    "Every round runs eager first; ratios are to that run, and eager's own show how far apart equal work comes out. "
    "GFLOP/s and GB/s count the least work there is (`bench/ops/roofline.py`); the roofline column is the share of the "
    "time that this work needs at the rates of the fastest matrix product and of a copy here, over 100% where a cache "
    "holds it all."
)


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the arguments, prints Markdown, draws."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS.json")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw PNG files into this folder")
    args = parser.parse_args(argv)
    for path in args.results:
        if not path.is_file():
            parser.error(f"{path}: no such file")
        try:
            found = list(sections(read_json(path)))
        except ValueError as error:
            parser.error(str(error) if isinstance(error, UsageError) else f"{path}: {error}")
        for name, markdown, draw in found:
            print(markdown)
            if args.plots is not None:
                args.plots.mkdir(parents=True, exist_ok=True)
                print(f"![{name}]({_plots().save(draw(), args.plots / f'{path.stem}-{name}.png')})\n")


def _plots() -> ModuleType:
    from . import plots  # tables need no matplotlib

    return plots


def sections(content: Any) -> Iterator[Section]:
    """The tables and pictures of one file.

    Raises:
        ValueError: it is no benchmark's result.
    """
    if not isinstance(content, dict):
        raise ValueError(f"expected what a benchmark wrote, found JSON of a {type(content).__name__}")
    if "benchmarks" in content:
        yield from _micro_sections(content)
    elif content.get("kind") == "step":
        yield "step", tables.step(content), lambda: _plots().step_figure(content)
    elif content.get("kind") == "forward":
        yield "forward", tables.forward(content), lambda: _plots().forward_figure(content)
    elif content.get("kind") == "end_to_end":
        yield "end_to_end", tables.end_to_end(content), lambda: _plots().end_to_end_figure(content)
    else:
        raise ValueError(
            "expected what a benchmark wrote: pytest-benchmark's JSON, or that of step, forward or end_to_end"
        )


def _micro_sections(content: dict[str, Any]) -> Iterator[Section]:
    rows = [benchmark["extra_info"] for benchmark in content["benchmarks"]]
    # Rows of one session share their conditions; a file put together of several has several.
    for (op, conditions), group in itertools.groupby(rows, key=lambda row: (row["op"], tables.conditions(row))):
        own = list(group)
        note = f"{conditions}. {_MICRO_NOTE}"
        yield op, f"### {op}\n\n{note}\n\n{tables.micro(own)}", lambda own=own: _plots().micro_figure(own)
