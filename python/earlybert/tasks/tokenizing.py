"""`datasets.Dataset`s that are made by a function once, and then found again in the cache of datasets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.fingerprint import Hasher

#: Raised when what is kept on disk changes its meaning.
_FORMAT = 1


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
    with quiet():
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
def quiet() -> Iterator[None]:
    """Leaves out the progress bars of datasets while within."""
    were_off = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            datasets.enable_progress_bars()


def flat(dataset: Any, name: str) -> np.ndarray:
    """A column of integers, int64 `(rows,)`."""
    return dataset.with_format("arrow")[:][name].to_numpy().astype(np.int64)


def tokenizer_key(tokenizer: Any) -> str:
    """What a fast tokenizer does to a text, whatever folder it came from and whatever it was last used for."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for name in ("truncation", "padding"):  # of the last call
        state.pop(name, None)
    return json.dumps([type(tokenizer).__name__, tokenizer.model_input_names, state])
