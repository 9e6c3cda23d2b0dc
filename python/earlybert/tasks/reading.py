"""What tasks have in common in reading: files that must be there, datasets of the hub, rows that are held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets

from ..errors import MissingFileError, UsageError


def check_is_file(path: Path) -> None:
    """Raises MissingFileError unless there is such a file."""
    if not path.is_file():
        raise MissingFileError(f"{path}: {'a folder, expected a file' if path.is_dir() else 'no such file'}")


def read_hub(name: str, *configuration: str | None, what: str, instead: str, **options: Any) -> Any:
    """A dataset of the Hugging Face hub, with all of its splits.

    Args:
        name: the dataset's.
        configuration: its name, where the dataset has several.
        what: what is called so in messages.
        instead: what to do where the hub cannot be reached.
        options: of `datasets.load_dataset`.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return datasets.load_dataset(name, *configuration, **options)
    except Exception as error:  # the hub's client raises errors of many libraries
        raise UsageError(f"{what} could not be read from the Hugging Face hub: {error}. {instead}") from error


def hold_out(rows: datasets.Dataset, *, one_in: int, most: int) -> tuple[datasets.Dataset, datasets.Dataset] | None:
    """The rows to train on and those to evaluate on, the same in every run; None where there is but one.

    Args:
        rows: all there are.
        one_in: of so many rows one is held out.
        most: how many are at most.
    """
    count = min(-(-len(rows) // one_in), most)
    if count >= len(rows):
        return None
    parts = rows.train_test_split(test_size=count, seed=0)
    return parts["train"], parts["test"]
