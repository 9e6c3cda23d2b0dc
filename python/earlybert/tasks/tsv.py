"""Tab-separated files as the GLUE distribution writes them.

These are not CSV files: a quote is a plain character, nothing is escaped, and a line ends at a line feed only
(sentences may hold other characters that Unicode counts as line breaks).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Row:
    """One line of a file.

    Attributes:
        path: the file.
        number: the line's number, from 1.
        fields: its columns.
    """

    path: Path
    number: int
    fields: list[str]

    def error(self, what: str) -> UsageError:
        """An error that says where: `dev.tsv:17: what`."""
        return UsageError(f"{self.path}:{self.number}: {what}")

    def check_columns(self, expected: int) -> None:
        """Raises UsageError unless the row has `expected` columns."""
        if len(self.fields) != expected:
            raise self.error(f"expected {expected} tab-separated columns, found {len(self.fields)}")


def read_rows(path: Path) -> Iterator[Row]:
    """The lines of a file, split at tabs.

    Raises:
        UsageError: a line is not UTF-8.
    """
    content = path.read_bytes().removeprefix(_BYTE_ORDER_MARK)
    lines = content.split(b"\n")
    while lines and not lines[-1].strip():  # the last line's own line feed, and blank lines behind it
        lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            text = line.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}:{number}: expected UTF-8 text, found {error}") from None
        yield Row(path, number, text.split("\t"))
