"""Texts to learn a language from, document by document: from files, or from a dataset of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset
from datasets.exceptions import DatasetGenerationError

from ..errors import MissingFileError, UsageError
from ..files import sha256
from .base import Source, TaskData
from .reading import hold_out, read_hub
from .tokenizing import cache_folder, using_cache

#: Documents that are held out where no others are named: one in so many, but not more than so many.
_HELD_OUT_SHARE, _MOST_HELD_OUT = 20, 1000
_TEXT = "text"


@dataclass(frozen=True)
class Documents:
    """Documents as a `datasets.Dataset` with one column, `text`."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def first(self, count: int | None) -> Documents:
        """See `Examples.first`."""
        if count is None or count >= len(self):
            return self
        return Documents(self.dataset.select(range(count)))


@dataclass(frozen=True)
class Corpus:
    """Where documents come from, and how they are told apart.

    Attributes:
        blank_lines: whether documents of a text file are separated by blank lines; each line is one otherwise.
        dataset_name: a dataset of the hub; None where there are files.
        dataset_config: its configuration.
        text_column: its column that has the texts.
        streaming: whether no more of it is read than the first `max_documents`.
        max_documents: how many documents are read for training; None for all.
    """

    blank_lines: bool = False
    dataset_name: str | None = None
    dataset_config: str | None = None
    text_column: str = _TEXT
    streaming: bool = False
    max_documents: int | None = None

    def load(self, source: Source) -> TaskData:
        """The documents to learn from and those that are held out.

        Raises:
            UsageError: there are none, or they cannot be read.
        """
        if self.dataset_name is not None:
            train, held_out = self._from_hub(self.dataset_name)
        elif source.train_file is None:
            raise UsageError("expected --train-file or --dataset-name, found neither")
        else:
            train = self.read(source.train_file)
            held_out = None if source.validation_file is None else self.read(source.validation_file)
        train = train.first(self.max_documents)
        if held_out is None:
            train, held_out = _split(train)
        return TaskData(train=train, evals={"": held_out})

    def read(self, path: Path) -> Documents:
        """The documents of a text file.

        Raises:
            MissingFileError: there is none.
            UsageError: it is empty, or not UTF-8.
        """
        if not path.is_file():
            found = "no such file" if not path.exists() else "a folder" if path.is_dir() else "no regular file"
            raise MissingFileError(f"{path}: {found}; expected a text file")
        if next(_documents(str(path), self.blank_lines), None) is None:
            raise UsageError(f"{path}: expected a text, found nothing but white space")
        # The cache knows a file by its content: paths, sizes and times may be another's.
        options = {"path": str(path), "blank_lines": self.blank_lines, "digest": sha256(path)}
        with using_cache():
            try:
                return Documents(Dataset.from_generator(_rows, gen_kwargs=options, cache_dir=str(cache_folder())))
            except DatasetGenerationError as error:
                raise error.__cause__ or error from None

    def _from_hub(self, name: str) -> tuple[Documents, Documents | None]:
        splits = read_hub(
            name,
            self.dataset_config,
            what=f"--dataset-name {name}",
            instead="To read texts from files, give --train-file",
            streaming=self.streaming,
        )
        if not isinstance(splits, dict) or "train" not in splits:
            found = ", ".join(splits) if isinstance(splits, DatasetDict) else "none"
            raise UsageError(f"--dataset-name {name}: expected a split named train, found {found}")
        train = self._column(splits["train"], name)
        return train, self._column(splits["validation"], name) if "validation" in splits else None

    def _column(self, split: Any, name: str) -> Documents:
        columns = split.column_names or []
        if self.text_column not in columns:
            raise UsageError(
                f"--text-column: expected a column of {name}, {', '.join(columns)}; found {self.text_column}"
            )
        if isinstance(split, IterableDataset):
            rows = islice(split.select_columns(self.text_column), self.max_documents)
            return Documents(Dataset.from_list([{_TEXT: row[self.text_column]} for row in rows]))
        split = split.select_columns(self.text_column)
        return Documents(split if self.text_column == _TEXT else split.rename_column(self.text_column, _TEXT))


def _split(documents: Documents) -> tuple[Documents, Documents]:
    """The same documents are held out of a corpus in every run."""
    with using_cache():
        parts = hold_out(documents.dataset, one_in=_HELD_OUT_SHARE, most=_MOST_HELD_OUT)
    if parts is None:
        raise UsageError(
            "a single document cannot be learnt from and held out; give --validation-file, or more documents "
            "(--max-train-examples, --documents)"
        )
    train, held_out = parts
    return Documents(train), Documents(held_out)


def _rows(path: str, blank_lines: bool, digest: str) -> Iterator[dict[str, str]]:
    for text in _documents(path, blank_lines):
        yield {_TEXT: text}


def _documents(path: str, blank_lines: bool) -> Iterator[str]:
    """The documents of a text file; lines end at line feeds alone, and white space at their ends does not count.

    Raises:
        UsageError: naming the line, where the file is not UTF-8.
    """
    lines: list[str] = []
    with open(path, "rb") as file:
        for number, content in enumerate(file, start=1):
            try:
                line = content.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise UsageError(f"{path}:{number}: expected UTF-8 text, found {error}") from None
            if line and blank_lines:
                lines.append(line)
            elif line:
                yield line
            elif lines:
                yield " ".join(lines)
                lines = []
    if lines:
        yield " ".join(lines)
