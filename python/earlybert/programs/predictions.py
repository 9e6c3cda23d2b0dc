"""Examples without labels, and the files of what a model says of them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..arguments import FinetuneArguments
from ..errors import UsageError
from ..tasks import Source, Task
from ..tasks.base import Examples

#: What a field of a .tsv cannot have within.
_BREAKS = re.compile("[\t\n\r]")


def read_tests(args: FinetuneArguments, task: Task, source: Source) -> dict[str, Examples]:
    """What a run is to say something of at its end, by the name of the file that it is to write.

    Args:
        args: of the run.
        task: its task, fitted to its examples.
        source: where these are.

    Raises:
        UsageError: there is no such file, it is not in the task's format, or the task has no test split of its own.
    """
    if args.test_file is not None:
        examples = task.read_file(Path(args.test_file), labelled=False)
        return {"test_predictions.jsonl": check_some(examples, args.test_file)}
    if not args.do_predict:
        return {}
    tests = task.own_tests(source)
    return {f"test_predictions{'_' + name if name else ''}.tsv": examples for name, examples in tests.items()}


def check_some(examples: Examples, file: str) -> Examples:
    """Raises UsageError if there are no examples in a file."""
    if not len(examples):
        raise UsageError(f"{file}: expected at least one example, found none")
    return examples


def render(task: Task, answers: Sequence[dict[str, Any]], suffix: str) -> bytes:
    """The content of a file of answers, as `Task.answers` gives them: `.jsonl`, or `.tsv` as GLUE wants it.

    A tab or the end of a line within an answer is a space in the latter, where it would begin a column or a row.
    """
    if suffix == ".jsonl":
        lines = [json.dumps(answer, ensure_ascii=False) for answer in answers]
    else:
        spelled = (_BREAKS.sub(" ", task.spell(answer)) for answer in answers)
        lines = ["index\tprediction", *(f"{i}\t{answer}" for i, answer in enumerate(spelled))]
    return "".join(line + "\n" for line in lines).encode()
