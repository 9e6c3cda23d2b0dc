"""Writing files so that a reader finds the old one or all of the new one, and nothing but a file is ever replaced."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import OutputExistsError, UsageError

#: What a file is called until it is whole.
PARTIAL = ".partial"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives another path to write to; the file that is then there takes the place of `path` in one step.

    A link is followed, so that it stays one. Where the writing fails nothing is left behind. The file gets the
    permissions that the umask says, whatever library wrote it.

    Raises:
        OutputExistsError: there is something at `path` that is no regular file.
    """
    path = check_replaceable(path)
    partial = path.with_name(path.name + PARTIAL)
    if partial.is_symlink():  # what it leads to is none of ours
        partial.unlink()
    try:
        yield partial
        apply_umask(partial)
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def apply_umask(path: Path) -> None:
    """Gives a file the permissions of a new one, whatever library made it."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def check_replaceable(path: Path) -> Path:
    """Follows links, and raises OutputExistsError if what is there, if anything, is no regular file."""
    try:
        path = path.resolve()
    except RuntimeError:  # as Python before 3.13 says that links lead to each other
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None
    if path.exists() and not path.is_file():
        raise OutputExistsError(f"{path}: a folder or device, which no file is written over; give another path")
    return path


def remove(path: Path) -> None:
    """Removes a file, a link (and not what it leads to) or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file in one step."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file in one step; NaN and infinity are a ValueError."""
    write_bytes(path, json_bytes(content))


def json_bytes(content: Any) -> bytes:
    """What `write_json` writes."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UsageError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: expected JSON, found {error}") from None


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
