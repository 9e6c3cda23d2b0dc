"""What is read of a table: its texts or words, and what is right of each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from datasets import ClassLabel, Dataset

from ..errors import UsageError

logger = logging.getLogger(__name__)

#: Where a cell can be a list, for messages.
_WITH_LISTS = "lists are in .jsonl, .json and .parquet files and in saved datasets"


@dataclass(frozen=True)
class Table:
    """The rows of one split.

    Attributes:
        texts: per row, its one or two texts, or its words.
        labels: per row, as the table has it: a number or a name; or a tuple of names, of several labels or one for each
            word. Empty where there are none.
        label_names: all names, in the order of the classes, where the table says so itself.
    """

    texts: list[tuple[str, ...]]
    labels: list[Any]
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, count: int | None) -> Table:
        """See `Examples.first`."""
        return self if count is None else Table(self.texts[:count], self.labels[:count], self.label_names)

    def rows(self, numbers: Sequence[int]) -> Table:
        """The rows of these numbers."""
        return Table([self.texts[i] for i in numbers], [self.labels[i] for i in numbers], self.label_names)

    def labels_used(self) -> set[str]:
        """The names of all labels that a row has."""
        rows = (row if isinstance(row, tuple) else (row,) for row in self.labels)
        return {str(label) for row in rows for label in row}


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read: texts, and the label of each.

    Attributes:
        text: the texts; None for the one of `usual_texts`.
        pair: the second texts, if there are any.
        label: the labels; None for the one of `usual_labels`.
    """

    text: str | None = None
    pair: str | None = None
    label: str | None = None

    #: The columns that are looked for where none is named.
    usual_texts: ClassVar[tuple[str, ...]] = ("sentence", "text")
    usual_labels: ClassVar[tuple[str, ...]] = ("label",)

    def read(self, dataset: Dataset, where: str, *, labelled: bool = True) -> Table:
        """The columns that were asked for.

        Args:
            dataset: the table.
            where: what it is called in messages.
            labelled: whether that of the labels is read.

        Raises:
            UsageError: one is not there, there are no rows, or a text or a label is missing.
        """
        if not len(dataset):
            raise UsageError(f"{where}: expected at least one example, found none")
        texts = self.read_texts(dataset, where)
        if not labelled:
            return Table(texts, [])
        labels, names = self.read_labels(dataset, where, texts)
        return Table(texts, labels, names)

    def read_texts(self, dataset: Dataset, where: str) -> list[tuple[str, ...]]:
        """The `texts` of `read`'s table."""
        names = self.text_columns(dataset, where)
        columns = [dataset[name][:] for name in names]
        for values, name in zip(columns, names, strict=True):
            _check_values(values, where, name, str, "a text")
        texts = list(zip(*columns, strict=True))
        if empty := sum(not any(map(str.strip, row)) for row in texts):
            found = f"{where}: {empty} of {len(texts)} texts in column {' and '.join(names)} are empty"
            if empty == len(texts):
                raise UsageError(found)
            logger.warning("%s", found)
        return texts

    def read_labels(
        self, dataset: Dataset, where: str, texts: list[tuple[str, ...]]
    ) -> tuple[list[Any], tuple[str, ...]]:
        """The `labels` and the `label_names` of `read`'s table.

        Args:
            dataset, where: as `read` takes them.
            texts: those of the table.
        """
        column = self.label_column(dataset, where)
        # A file of strings has an empty one where a label is missing.
        labels = [None if _is_blank(label) else label for label in dataset[column][:]]
        _check_values(labels, where, column, (str, int, float), "a label")
        names = _class_names(dataset.features[column])
        if names:
            labels = [_named(label, names, f"{where}, row {row}", column) for row, label in enumerate(labels, 1)]
        return labels, names

    def label_column(self, dataset: Dataset, where: str) -> str:
        """The name of the one that has the labels."""
        name = _name(dataset, where, "--label-column", self.label, self.usual_labels)
        if name in self.text_columns(dataset, where):
            raise UsageError(f"--label-column: expected another column of {where} than that of the texts, found {name}")
        return name

    def text_columns(self, dataset: Dataset, where: str) -> list[str]:
        """The names of those that have the texts."""
        names = [_name(dataset, where, "--text-column", self.text, self.usual_texts)]
        if self.pair is not None:
            names.append(_name(dataset, where, "--text-pair-column", self.pair))
        if len(set(names)) < len(names):
            raise UsageError(
                f"--text-pair-column: expected another column of {where} than --text-column, found {self.pair}"
            )
        return names


@dataclass(frozen=True)
class LabelSets(Columns):
    """Texts, and any number of labels of each: a list of them in a cell, or a column for each label.

    Attributes:
        each: the columns of single labels, with 1 where a text has it and 0 where not; empty for one column of lists.
    """

    each: tuple[str, ...] = ()

    usual_labels: ClassVar[tuple[str, ...]] = ("labels", "label")

    def read_labels(
        self, dataset: Dataset, where: str, texts: list[tuple[str, ...]]
    ) -> tuple[list[Any], tuple[str, ...]]:
        """See `Columns.read_labels`."""
        if self.each:
            columns = [_name(dataset, where, "--label-columns", name) for name in self.each]
            rows = zip(*(_marks(dataset[name][:], where, name) for name in columns), strict=True)
            return [tuple(name for name, has in zip(columns, row, strict=True) if has) for row in rows], self.each
        advice = f"; {_WITH_LISTS}; of other files name a column of 0 and 1 for each label with --label-columns"
        try:
            column = self.label_column(dataset, where)
        except UsageError as error:
            raise UsageError(f"{error}{advice}") from None
        lists = dataset[column][:]
        _check_values(lists, where, column, list, "a list of labels", advice)
        names = _class_names(getattr(dataset.features[column], "feature", None))
        labels = []
        for number, row in enumerate(lists, 1):
            here = f"{where}, row {number}"
            for label in row:
                if not isinstance(label, (str, int)) or isinstance(label, bool) or _is_blank(label):
                    raise UsageError(
                        f"{here}: expected names or whole numbers of labels in column {column}, found {label!r:.60}"
                    )
            own = tuple(_named(label, names, here, column) if names else str(label) for label in row)
            if len(set(own)) < len(own):
                twice = next(label for label in own if own.count(label) > 1)
                raise UsageError(
                    f"{here}: expected the labels that a text has in column {column}, found {twice} twice; rows of 0 "
                    "and 1 belong into a column for each label, --label-columns"
                )
            labels.append(own)
        return labels, names


@dataclass(frozen=True)
class WordTags(Columns):
    """Texts as lists of words, and a list of tags, one for each word."""

    usual_texts: ClassVar[tuple[str, ...]] = ("tokens", "words")
    usual_labels: ClassVar[tuple[str, ...]] = ("ner_tags", "tags")

    def read_texts(self, dataset: Dataset, where: str) -> list[tuple[str, ...]]:
        """See `Columns.read_texts`."""
        (column,) = self.text_columns(dataset, where)
        rows = dataset[column][:]
        _check_values(rows, where, column, list, "a list of words", f"; {_WITH_LISTS}, .conll files have a word a line")
        for number, row in enumerate(rows, 1):
            if not row:
                raise UsageError(
                    f"{where}, row {number}: expected a list of words in column {column}, found an empty one"
                )
            for word in row:
                if not isinstance(word, str):
                    raise UsageError(f"{where}, row {number}: expected words in column {column}, found {word!r:.60}")
        return [tuple(row) for row in rows]

    def read_labels(
        self, dataset: Dataset, where: str, texts: list[tuple[str, ...]]
    ) -> tuple[list[Any], tuple[str, ...]]:
        """See `Columns.read_labels`."""
        column = self.label_column(dataset, where)
        rows = dataset[column][:]
        _check_values(rows, where, column, list, "a list of tags")
        names = _class_names(getattr(dataset.features[column], "feature", None))
        labels = []
        for number, (row, words) in enumerate(zip(rows, texts, strict=True), 1):
            here = f"{where}, row {number}"
            if len(row) != len(words):
                raise UsageError(f"{here}: expected a tag for each word, found {len(words)} words and {len(row)} tags")
            tags = [_named(tag, names, here, column) for tag in row] if names else row
            for tag in tags:
                if not isinstance(tag, str) or _is_blank(tag):
                    raise UsageError(
                        f"{here}: expected names of tags in column {column}, such as B-PER and O, found {tag!r:.60}; "
                        "only a saved dataset's ClassLabel says what numbers stand for: write the names"
                    )
            labels.append(tuple(tags))
        return labels, names


def _class_names(feature: Any) -> tuple[str, ...]:
    """The names of a column's classes, where it has any."""
    return tuple(feature.names) if isinstance(feature, ClassLabel) else ()


def _named(label: int | None, names: tuple[str, ...], where: str, column: str) -> str:
    """The name of a class by its number."""
    if label is None or not 0 <= label < len(names):
        raise UsageError(f"{where}: expected a label in column {column}, found none")
    return names[label]


def _marks(values: Sequence[Any], where: str, column: str) -> list[bool]:
    """Whether each row has a label, by 1 or 0, which may be of any type."""
    for row, value in enumerate(values, 1):
        if value not in (0, 1, "0", "1"):
            raise UsageError(f"{where}, row {row}: expected 0 or 1 in column {column}, found {value!r:.60}")
    return [value in (1, "1") for value in values]


def _name(dataset: Dataset, where: str, flag: str, given: str | None, usual: tuple[str, ...] = ()) -> str:
    """The column that a flag names, or the first of the usual ones that is there."""
    names = dataset.column_names
    found = next((name for name in ((given,) if given else usual) if name in names), None)
    if found is None:
        listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        wanted = given or " or ".join(usual)
        raise UsageError(f"{flag}: expected a column of {where}, which has {listed}; found none named {wanted}")
    return found


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _check_values(values: Sequence[Any], where: str, column: str, kinds: Any, expected: str, advice: str = "") -> None:
    for row, value in enumerate(values, start=1):
        if not isinstance(value, kinds) or value != value:  # NaN, which is how a number is missing
            found = "nothing" if value is None or value != value else repr(value)[:60]
            raise UsageError(f"{where}, row {row}: expected {expected} in column {column}, found {found}{advice}")
