"""Rows of integers of different lengths, which may lie in files that are mapped into memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch


class Ragged(Sequence[torch.Tensor]):
    """Rows of integers: each is an int64 tensor when it is asked for, and until then as compact as it was given."""

    def __init__(self, chunks: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        """
        Args:
            chunks: the values of so many rows one behind the other, and the rows' lengths.
        """
        kept = [(values, np.asarray(lengths, np.int64)) for values, lengths in chunks if len(lengths)]
        self._values = [values for values, _ in kept]
        self._ends = [np.cumsum(lengths) for _, lengths in kept]
        self._first = [0, *accumulate(len(lengths) for _, lengths in kept)]
        self.lengths = np.concatenate([lengths for _, lengths in kept]) if kept else np.zeros(0, np.int64)

    @classmethod
    def of(cls, rows: Iterable[Any]) -> Ragged:
        """Rows given one by one, as lists or tensors."""
        arrays = [np.asarray(row, np.int64) for row in rows]
        return cls([(np.concatenate(arrays), np.array([len(row) for row in arrays]))] if arrays else [])

    @classmethod
    def column(cls, dataset: Any, name: str) -> Ragged:
        """A column of lists of a `datasets.Dataset`; what lies in a file stays there."""
        chunks = dataset.with_format("arrow")[:][name].chunks
        return cls((chunk.flatten().to_numpy(), chunk.value_lengths().to_numpy()) for chunk in chunks)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> torch.Tensor:  # type: ignore[override]  # no slices
        index = range(len(self))[index]  # which knows negative numbers, and those that are too large
        chunk = bisect_right(self._first, index) - 1
        row, ends = index - self._first[chunk], self._ends[chunk]
        return torch.from_numpy(self._values[chunk][ends[row - 1] if row else 0 : ends[row]].astype(np.int64))

    def arrays(self) -> Iterator[np.ndarray]:
        """All values, in their order, in one array after the other."""
        yield from self._values
