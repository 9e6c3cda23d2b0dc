"""Makes the table of which backend runs an op on a GPU, from the microbenchmarks' results there.

    python -m bench.tune.choices RESULTS.json [...] --output choices.json

Takes what `pytest bench/ --benchmark-json=FILE` writes on a GPU. Writes `earlybert_kernels/ops/choices.json` anew, with
this GPU's architecture measured; look at it, and copy it over that one. What counts are forward and backward with all
units, in half precision, and what is called once a step: for each op and size the backends in the order of their times.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import earlybert_kernels as ek
from earlybert.files import read_json, write_bytes
from earlybert_kernels.backends import backends, nearest
from earlybert_kernels.ops import choices, dispatch

from ..ops.cases import BASELINE
from ..report import tables
from . import choice_tables

_GPU_BACKENDS = tuple(own.name for own in backends().values() if "cuda" in own.devices)
#: Rows that run plain PyTorch on what our op is given; the baseline of what is called once a step does.
_LIBRARY = dict.fromkeys(
    ("gather_units", "optimizer_step", "pad", "ticket_distance", "ticket_masks", "unpad"), BASELINE
)
#: The op of rows with another name. AdamW's do not count: their baseline is torch's own, and not our op.
_OP_OF_ROWS = {"lamb": "optimizer_step"}


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the arguments, reads the results, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS.json")
    parser.add_argument("--output", type=Path, required=True, help="file for the new table")
    args = parser.parse_args(argv)
    contents = [read_json(path) for path in args.results]
    found = [each["extra_info"] for content in contents for each in content.get("benchmarks", ())]
    rows = [row | {"op": _OP_OF_ROWS.get(row["op"], row["op"])} for row in found]
    try:
        table = new_table(rows)
    except ValueError as error:
        parser.error(str(error))
    write_bytes(args.output, choice_tables.as_text(table).encode())


def new_table(rows: Sequence[tables.Result]) -> dict:
    """The shipped table with the architecture of these rows replaced; ops that they have not keep what they had.

    Raises:
        ValueError: the rows are not of one GPU, or one that is needed is missing or not proven right.
    """
    rows = [row for row in rows if _counts(row)]
    if not rows:
        raise ValueError("no row is of a dense op, forward and backward, in half precision")
    architectures = {_architecture(row) for row in rows}
    if len(architectures) > 1:
        raise ValueError(f"the results are of several architectures: {', '.join(sorted(architectures))}")
    (architecture,) = architectures
    ops = sorted({row["op"] for row in rows})
    found = {op: entries(op, [row for row in rows if row["op"] == op]) for op in ops}
    before = nearest(choices.table()["architectures"], int(architecture))
    how = f"`python -m bench.tune.choices`, {tables.conditions(rows[0])}"
    return choice_tables.measured(choices.table(), architecture, before | found, how)


def entries(op: str, rows: Sequence[tables.Result]) -> list[dict]:
    """What the table has for an op: sizes from which on an order holds, the order, and the reason.

    Between two sizes that were measured the nearer one decides, by their ratio.

    Raises:
        ValueError: a backend's row is missing, or not proven right.
    """
    found: list[dict] = []
    sizes = sorted({_size(row) for row in rows})
    for number, size in enumerate(sizes):
        times = _times(op, [row for row in rows if _size(row) == size])
        library = _LIBRARY.get(op, "reference")
        order = sorted((*_GPU_BACKENDS, library), key=lambda name: times.get(name, math.inf))
        order = ["reference" if name == library else name for name in order]
        listed = ", ".join(f"{name} {time:.3f}" for name, time in sorted(times.items(), key=lambda item: item[1]))
        reason = f"at {size}, of eager's time: {listed}"
        if found and found[-1]["order"] == order:
            found[-1]["reason"] += f"; {reason}"
        else:
            begin = 0 if number == 0 else round(math.sqrt(sizes[number - 1] * size))
            found.append({"from": begin, "order": order, "reason": f"measured: {reason}"})
    return found


def _times(op: str, rows: Sequence[tables.Result]) -> dict[str, float]:
    """By provider, the mean over problems of the same size: of eager's time in the same rounds, the median."""
    own_backends = {*ek.ops.backends(op), *dispatch.unavailable(op)}
    needed = own_backends.intersection(_GPU_BACKENDS) | {_LIBRARY.get(op, "reference")}
    problems: dict[tuple, dict[str, float]] = {}
    for row in rows:
        if not row["errors"] or not all(map(math.isfinite, row["errors"].values())):
            raise ValueError(f"{op}: the row of {row['provider']} does not say that its results are right")
        problems.setdefault(tables.problem_of(row), {})[row["provider"]] = row["ratio"]["median"]
    for own in problems.values():
        if missing := sorted(needed - set(own)):
            raise ValueError(
                f"{op}, size {_size(rows[0])}: no row of {', '.join(missing)}, which was not run, could not, or was "
                "wrong; without it there is no choice"
            )
    common = set.intersection(*(set(own) for own in problems.values()))
    return {name: statistics.mean(own[name] for own in problems.values()) for name in common}


def _counts(row: tables.Result) -> bool:
    if row["op"] not in dispatch.op_names() or row["unit"] != "dense":
        return False
    return row["mode"] == "step" or (row["mode"] == "full" and row["dtype"] != "float32")


def _architecture(row: tables.Result) -> str:
    if row["device"] != "cuda":
        raise ValueError(f"{row['op']}: measured on device {row['device']}, and the table is of GPUs")
    if "architecture" not in row["machine"]:
        raise ValueError(f"{row['op']}: its results do not say the GPU's architecture; measure anew")
    return row["machine"]["architecture"].removeprefix("sm_")


def _size(row: tables.Result) -> int:
    """What the op tells the dispatcher: attention its longest sequence, nothing once a step, else rows."""
    if row["mode"] == "step":
        return 0
    return max(row["sequence_lengths"]) if row["op"] == "attention" else row["tokens"]


if __name__ == "__main__":
    main()
