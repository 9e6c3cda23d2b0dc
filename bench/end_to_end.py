r"""Whole fine-tuning runs with their quality: `earlybert compare`, recorded with machine, versions and commit.

    python -m bench.end_to_end --model MODEL --task sst2 --data-dir GLUE/SST-2 --output-dir runs/sst2 \
        --methods dense dense-short earlybert random inverted --kernels auto off --seeds 1 2 3

Takes the arguments of `earlybert compare`, and like it continues where it was interrupted. Writes `end_to_end.json`
into the output folder and prints the README's table; `python -m bench.report runs/sst2/end_to_end.json` prints it again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from earlybert.cli import parse_comparison
from earlybert.compare import compare
from earlybert.errors import UsageError
from earlybert.rundir import read_json, write_json

from . import record, tables

RESULT = "end_to_end.json"
#: Every commit at which this program was run in the folder: a run that was finished earlier is not repeated.
_COMMITS = "commits.json"
_RUNS = "*-seed*/metrics.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the comparison, writes the JSON, prints the table.

    Returns:
        0, or 2 where the user asked for something that cannot be done.
    """
    template, variants, seeds = parse_comparison("python -m bench.end_to_end", sys.argv[1:] if argv is None else argv)
    folder = Path(template.output_dir)
    try:
        template.check()
        commits = _note_commit(folder, anew=template.overwrite_output_dir)
        comparison = compare(template, variants, seeds)
    except UsageError as error:
        print(f"bench.end_to_end: error: {error}", file=sys.stderr)
        return 2
    result: dict[str, Any] = {
        "kind": "end_to_end",
        "machine": comparison["machine"],
        "versions": comparison["versions"],
        "commit": ", ".join(commits),
        "comparison": comparison,
    }
    write_json(folder / RESULT, result)
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
    now = record.commit()
    if now not in commits:
        commits.append(now)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, commits)
    return commits


if __name__ == "__main__":
    sys.exit(main())
