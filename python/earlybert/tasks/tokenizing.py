"""`datasets.Dataset`s that are made by a function once, and then found again in the cache of datasets."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import multiprocess
import numpy as np
from datasets.fingerprint import Hasher

from ..errors import UsageError

#: Raised when what is kept on disk changes its meaning.
_FORMAT = 2


def map_cached(source: Any, function: Callable[..., dict[str, list]], *key: Any, processes: int = 1) -> Any:
    """A `datasets.Dataset` of what a function makes of another, in the cache of datasets (`HF_DATASETS_CACHE`).

    Args:
        source: a `datasets.Dataset`.
        function: makes columns, perhaps of another number of rows, of a batch of rows and their numbers.
        key: all that the function's result depends on but its input, as values that have a `repr`.
        processes: that share the work.
    """
    digest = Hasher.hash([_FORMAT, source._fingerprint, *map(repr, key)])
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with using_cache(), _mortal_workers():
        return source.map(
            function,
            batched=True,
            with_indices=True,
            remove_columns=source.column_names,
            cache_file_name=str(cache / f"{digest}.arrow"),
            new_fingerprint=digest,
            num_proc=processes if processes > 1 else None,
        )


def cache_folder() -> Path:
    """Where what was made is kept."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "earlybert-kernels"


@contextmanager
def using_cache() -> Iterator[None]:
    """Leaves out the progress bars of datasets while within, and says of what goes wrong that it is in the cache.

    Raises:
        OSError: a file cannot be written there.
        UsageError: one cannot be read.
    """
    were_off = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    except UsageError:
        raise
    except multiprocess.TimeoutError as error:
        # `Dataset.map` asks its workers for their results on the way out, in vain, and what ended it is lost.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    except (OSError, ValueError) as error:  # Arrow's and JSON's errors are such
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(cache_folder())) from error
        raise UsageError(
            f"{cache_folder()}: what was tokenised before cannot be read ({error}); remove the folder, it is made anew"
        ) from error
    finally:
        if not were_off:
            datasets.enable_progress_bars()


_in_map = False


@contextmanager
def _mortal_workers() -> Iterator[None]:
    """Processes that begin within leave Ctrl-C to the one that began them, and end when that one tells them to.

    They inherit its handlers, which would have them go on.
    """
    global _in_map
    _in_map = True
    try:
        yield
    finally:
        _in_map = False


def _reset_signals() -> None:
    if _in_map:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_reset_signals)


def flat(dataset: Any, name: str) -> np.ndarray:
    """A column of integers, int64 `(rows,)`."""
    return dataset.with_format("arrow")[:][name].to_numpy().astype(np.int64)


def tokenizer_key(tokenizer: Any) -> str:
    """What a fast tokenizer does to a text, whatever folder it came from and whatever it was last used for."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for name in ("truncation", "padding"):  # of the last call
        state.pop(name, None)
    return json.dumps([type(tokenizer).__name__, tokenizer.model_input_names, state])
