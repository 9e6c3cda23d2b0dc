"""Tokenising what takes a while, once: kept on disk, in memory that a file is mapped to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

#: Raised when what is kept on disk changes its meaning.
_FORMAT = 1


def map_cached(
    columns: dict[str, Sequence[Any]], function: Callable[[dict[str, list], list[int]], dict[str, list]], *key: Any
) -> Any:
    """A `datasets.Dataset` of what a function makes of columns, in the cache of datasets (`HF_DATASETS_CACHE`).

    Args:
        columns: what there is.
        function: makes columns, perhaps of another number of rows, of a batch of rows and their numbers.
        key: all that the function's result depends on but its input, as values that have a `repr`.
    """
    import datasets
    from datasets.fingerprint import Hasher

    source = datasets.Dataset.from_dict(columns)
    digest = Hasher.hash([_FORMAT, source._fingerprint, *map(repr, key)])
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "earlybert-kernels"
    cache.mkdir(parents=True, exist_ok=True)
    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return source.map(
            function,
            batched=True,
            with_indices=True,
            remove_columns=source.column_names,
            cache_file_name=str(cache / f"{digest}.arrow"),
            new_fingerprint=digest,
        )
    finally:
        if not shown:
            datasets.enable_progress_bars()


def ragged(dataset: Any, name: str) -> list[torch.Tensor]:
    """A column of lists of integers: one int64 tensor a row, all of them parts of one."""
    chunks = dataset.with_format("arrow")[:][name].chunks
    lengths = np.concatenate([chunk.value_lengths().to_numpy() for chunk in chunks])
    values = np.concatenate([chunk.flatten().to_numpy() for chunk in chunks]).astype(np.int64)
    return list(torch.from_numpy(values).split(lengths.tolist()))


def flat(dataset: Any, name: str) -> np.ndarray:
    """A column of integers, int64 `(rows,)`."""
    return dataset.with_format("arrow")[:][name].to_numpy().astype(np.int64)


def tokenizer_key(tokenizer: Any) -> str:
    """What a fast tokenizer does to a text, whatever folder it came from and whatever it was last used for."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for name in ("truncation", "padding"):  # of the last call
        state.pop(name, None)
    return json.dumps([type(tokenizer).__name__, tokenizer.model_input_names, state])
