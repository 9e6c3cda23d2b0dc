"""Tables of one's own: CSV, TSV, JSON lines, Parquet and CoNLL files, saved datasets and datasets of the hub."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, load_from_disk
from pyarrow import csv, parquet
from pyarrow import json as json_lines

from ..errors import UsageError
from .base import Source
from .columns import Columns, Table
from .conll import read_conll
from .reading import check_is_file, hold_out, read_hub

#: Rows that are held out where no others are named: one in so many, but not more than so many.
_HELD_OUT_SHARE, _MOST_HELD_OUT = 10, 1000
#: Bytes that Arrow parses at a time; a row must fit into them.
_BLOCK_SIZE = 1 << 26
#: What a file in UTF-16 begins with, as some spreadsheets and shells write it.
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_tables(source: Source, columns: Columns) -> tuple[Table, Table]:
    """The rows to train on and those to evaluate on, which are held out of the former where there are no others.

    Raises:
        UsageError: naming the file, and what was expected of it.
    """
    train, evaluation = _splits(source)
    found = columns.read(*train)
    if evaluation is not None:
        return found, columns.read(*evaluation)
    return _held_out(found)


def _splits(source: Source) -> tuple[tuple[Dataset, str], tuple[Dataset, str] | None]:
    """The two datasets, and what each is called in messages."""
    given = {
        "--train-file": source.train_file,
        "--dataset-name": source.dataset_name,
        "--data-dir": source.data_dir,
    }
    flags = [flag for flag, value in given.items() if value is not None]
    if len(flags) > 1:
        raise UsageError(f"expected one of {', '.join(flags)}, all of which say what to train on")
    if source.validation_file is not None and source.train_file is None:
        raise UsageError("--validation-file: expected --train-file with it")
    if source.dataset_name is not None:
        return _of_hub(source.dataset_name, source.dataset_config)
    if source.data_dir is not None:
        return _of_folder(source.data_dir)
    if source.train_file is None:
        raise UsageError(
            "expected what to train on: --train-file (.csv, .tsv, .jsonl, .json, .parquet or .conll), --dataset-name, "
            "or --data-dir with a dataset that was saved by datasets; or --task"
        )
    train = read_table(source.train_file), str(source.train_file)
    if source.validation_file is None:
        return train, None
    return train, (read_table(source.validation_file), str(source.validation_file))


def _of_hub(name: str, config: str | None) -> tuple[tuple[Dataset, str], tuple[Dataset, str] | None]:
    what = f"--dataset-name {name}"
    return _named(read_hub(name, config, what=what, instead="To read from files, give --train-file"), what)


def _of_folder(folder: Path) -> tuple[tuple[Dataset, str], tuple[Dataset, str] | None]:
    try:
        splits = load_from_disk(str(folder))
    except (OSError, ValueError, LookupError, pa.ArrowInvalid) as error:
        raise UsageError(
            f"--data-dir {folder}: expected a dataset with a split named train, as DatasetDict.save_to_disk writes "
            f"it: {error}"
        ) from error
    return _named(splits, f"--data-dir {folder}")


def _named(splits: Any, what: str) -> tuple[tuple[Dataset, str], tuple[Dataset, str] | None]:
    if not isinstance(splits, DatasetDict) or "train" not in splits:
        found = ", ".join(splits) if isinstance(splits, DatasetDict) else "a single one"
        raise UsageError(f"{what}: expected a split named train, found {found}")
    evaluation = splits.get("validation")
    return (
        (splits["train"], f"{what}, split train"),
        None if evaluation is None else (evaluation, f"{what}, split validation"),
    )


def read_table(path: Path) -> Dataset:
    """A table by its file's name: `.csv`, `.tsv` (nothing is quoted), `.jsonl` and `.json` (a row a line, or one list
    of them), `.parquet`, `.conll` (see `read_conll`). The columns of the first two are of strings.

    Raises:
        MissingFileError: there is no such file.
        UsageError: it is not what its name says.
    """
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise UsageError(f"{path}: expected a file named {', '.join(_READERS)}, to know its format")
    check_is_file(path)
    with _reading(path):
        with path.open("rb") as file:
            if file.read(2) in _UTF16:
                raise UsageError(f"{path}: expected UTF-8, found UTF-16; iconv -f UTF-16 -t UTF-8 converts it")
        table = _READERS[suffix](path)
        name, count = max(Counter(table.column_names).items(), key=lambda item: item[1], default=("", 0))
        if count > 1:
            raise UsageError(f"{path}: expected columns of different names, found two named {name}")
        return Dataset(table)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Says of whatever a reader finds wrong in which file that is."""
    try:
        yield
    except UsageError:
        raise
    except (pa.ArrowException, ValueError) as error:
        # Arrow shows the whole row behind a line feed.
        raise UsageError(f"{path}: this is not the {path.suffix} that its name says: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _read_csv(path: Path) -> pa.Table:
    return _read_delimited(path, csv.ParseOptions(newlines_in_values=True))


def _read_tsv(path: Path) -> pa.Table:
    return _read_delimited(path, csv.ParseOptions(delimiter="\t", quote_char=False))


def _read_delimited(path: Path, format: csv.ParseOptions) -> pa.Table:
    """Strings as they are: what could be numbers, dates or missing would not come back as it was written."""
    options = {"read_options": csv.ReadOptions(block_size=_BLOCK_SIZE), "parse_options": format}
    header = csv.open_csv(path, **options).schema.names
    types = csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False)
    return csv.read_csv(path, convert_options=types, **options)


def _read_json(path: Path) -> pa.Table:
    with path.open("rb") as file:
        is_list = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    if not is_list:
        return _read_json_lines(path)
    rows = json.loads(path.read_text("utf-8-sig"))
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected a list of rows, each of the form {column: value}")
    return pa.Table.from_pylist(rows)


def _read_json_lines(path: Path) -> pa.Table:
    """Strings as they are, those too that Arrow takes for times, which would not come back as they were written."""
    options = json_lines.ReadOptions(block_size=_BLOCK_SIZE)
    table = json_lines.read_json(path, read_options=options)
    written = {field.name: _without_times(field.type) for field in table.schema}
    if changed := [(name, type) for name, type in written.items() if type != table.schema.field(name).type]:
        parsing = json_lines.ParseOptions(explicit_schema=pa.schema(changed))
        table = json_lines.read_json(path, read_options=options, parse_options=parsing)
    return table


def _without_times(type: pa.DataType) -> pa.DataType:
    """A type with strings in place of times, in lists too."""
    if pa.types.is_list(type):
        return pa.list_(_without_times(type.value_type))
    return pa.string() if pa.types.is_timestamp(type) else type


_READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".parquet": parquet.read_table,
    ".conll": read_conll,
}


def _held_out(table: Table) -> tuple[Table, Table]:
    """The same rows are held out of a table in every run."""
    parts = hold_out(Dataset.from_dict({"row": range(len(table))}), one_in=_HELD_OUT_SHARE, most=_MOST_HELD_OUT)
    if parts is None:
        raise UsageError("a single row cannot be learnt from and held out; give --validation-file, or more rows")
    train, evaluation = (table.rows(part["row"][:]) for part in parts)
    return train, evaluation
