"""Parts of GLUE's training files, to choose settings by: `python -m bench.studies.splits GLUE SPLITS`.

What is chosen on them is reported on the tasks' own development sets, which had no say in it. Folders as GLUE
distributes them, with a training and a development file, are written for SST-2, CoLA and MRPC.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple


class Split(NamedTuple):
    """Rows of a task's training file.

    Attributes:
        train, dev: which become the training and the development file.
        has_header: whether the file's first line is none of them.
    """

    train: slice
    dev: slice
    has_header: bool = True


SPLITS = {
    "sst2": Split(slice(0, 5000), slice(20000, 22000)),
    "cola": Split(slice(0, 7551), slice(7551, None), has_header=False),
    "mrpc": Split(slice(0, 3000), slice(3000, None)),
}


def write_split(task: str, source: Path, target: Path) -> None:
    """Writes the split of a task.

    Args:
        task: of `SPLITS`.
        source: folder with GLUE's folder of the task, `train.tsv` in it.
        target: folder for that of the split.
    """
    split = SPLITS[task]
    lines = (source / task / "train.tsv").read_bytes().removesuffix(b"\n").split(b"\n")
    header, rows = (lines[:1], lines[1:]) if split.has_header else ([], lines)
    folder = target / task
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", rows[split.train]), ("dev", rows[split.dev])):
        (folder / f"{name}.tsv").write_bytes(b"\n".join([*header, *part]) + b"\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="GLUE", help="folder with sst2, cola and mrpc as distributed")
    parser.add_argument("target", type=Path, metavar="SPLITS", help="folder for the splits")
    args = parser.parse_args()
    for task in SPLITS:
        write_split(task, args.source, args.target)


if __name__ == "__main__":
    main()
