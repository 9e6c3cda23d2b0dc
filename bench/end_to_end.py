r"""Whole fine-tuning runs with their quality: `earlybert compare`, recorded with machine, versions and commit.

    python -m bench.end_to_end --model MODEL --task sst2 --data-dir GLUE/SST-2 --output-dir runs/sst2 \
        --kernels auto off --seeds 1 2 3

All arguments are those of `earlybert compare`; only that all its methods are run where none are named. Like it, this
continues where it was interrupted. Writes `end_to_end.json` into the output folder and prints the table of
docs/results.md, which `python -m bench.report` prints again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from earlybert import cli
from earlybert.files import read_json, write_json
from earlybert.programs.compare import COMPARED_METHODS

from . import provenance
from .report import tables

RESULT = "end_to_end.json"
#: Every commit at which this program was run in the folder: a run that was finished earlier is not repeated.
_COMMITS = "commits.json"
_RUNS = "*-seed*/metrics.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the comparison, writes the JSON, prints the table.

    Returns:
        What `earlybert compare` returns: 0 on success.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="earlybert compare --help lists the other arguments.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output-dir", "--output_dir", type=Path, required=True, help="folder for all runs")
    parser.add_argument("--overwrite-output-dir", "--overwrite_output_dir", action="store_true", help="begin anew")
    argv = list(sys.argv[1:] if argv is None else argv)
    own, _ = parser.parse_known_args(argv)
    # Noted before the first run, since an interrupted comparison does not come back here.
    try:
        commits = _note_commit(own.output_dir, anew=own.overwrite_output_dir)
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    status = cli.main(["compare", "--methods", *COMPARED_METHODS, *argv])
    if status != 0:
        return status
    comparison = read_json(own.output_dir / "comparison.json")
    result = {
        "kind": "end_to_end",
        "machine": comparison["machine"],
        "versions": comparison["versions"],
        "commit": ", ".join(commits),
        "arguments": argv,
        "comparison": comparison,
    }
    write_json(own.output_dir / RESULT, result)
    print(tables.end_to_end(result))
    return 0


def _note_commit(folder: Path, *, anew: bool) -> list[str]:
    """Adds this commit to those noted in the folder, and returns them all."""
    path = folder / _COMMITS
    commits: list[str] = []
    if path.exists() and not anew:
        commits = read_json(path)
    elif not anew and any(folder.glob(_RUNS)):
        commits = ["unknown"]  # of runs that another program finished
    now = provenance.commit()
    if now not in commits:
        commits.append(now)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, commits)
    return commits


if __name__ == "__main__":
    sys.exit(main())
