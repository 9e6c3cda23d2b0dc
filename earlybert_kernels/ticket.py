"""A ticket: which heads and neurons of a model are kept."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal


class Ticket:
    """The kept units of a model, layer by layer; immutable.

    Attributes:
        heads: sorted indices of the kept heads, a list a layer.
        neurons: sorted indices of the kept feed-forward neurons, a list a layer.

    Raises:
        ValueError: the two have different numbers of layers, or a layer repeats an index or has a negative one.
        TypeError: an index is not an integer.
    """

    def __init__(self, heads: Iterable[Iterable[int]], neurons: Iterable[Iterable[int]]) -> None:
        self._heads = [_sorted_unique(units, "heads", layer) for layer, units in enumerate(heads)]
        self._neurons = [_sorted_unique(units, "neurons", layer) for layer, units in enumerate(neurons)]
        if len(self._heads) != len(self._neurons):
            raise ValueError(
                f"a ticket needs heads and neurons of the same layers: got {len(self._heads)} layers of heads "
                f"and {len(self._neurons)} of neurons"
            )

    @property
    def heads(self) -> list[list[int]]:
        """Sorted indices of the kept heads of each layer."""
        return [list(units) for units in self._heads]

    @property
    def neurons(self) -> list[list[int]]:
        """Sorted indices of the kept neurons of each layer."""
        return [list(units) for units in self._neurons]

    def __len__(self) -> int:
        """The number of layers."""
        return len(self._heads)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ticket):
            return NotImplemented
        return self._heads == other._heads and self._neurons == other._neurons

    def __hash__(self) -> int:
        return hash((tuple(map(tuple, self._heads)), tuple(map(tuple, self._neurons))))

    def __repr__(self) -> str:
        heads, neurons = (",".join(str(len(u)) for u in units) for units in (self._heads, self._neurons))
        return f"Ticket(kept heads a layer: {heads}; kept neurons a layer: {neurons})"

    def save(self, path: str | os.PathLike) -> None:
        """Writes the ticket as JSON: `{"heads": [[...], ...], "neurons": [[...], ...]}`."""
        rows = {
            name: "[\n    " + ",\n    ".join(json.dumps(units) for units in layers) + "\n  ]"
            for name, layers in (("heads", self._heads), ("neurons", self._neurons))
        }
        text = f'{{\n  "heads": {rows["heads"]},\n  "neurons": {rows["neurons"]}\n}}\n'
        partial = Path(f"{os.fspath(path)}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Ticket:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a ticket.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(data["heads"], data["neurons"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)} is not a ticket written by Ticket.save: {error}") from error

    def distance(self, other: Ticket, of: Literal["heads", "neurons"] | None = None) -> float:
        """How far two tickets are apart: the share of their kept units that only one of them keeps.

        `|A xor B| / (|A| + |B|)`: 0 for equal tickets, 1 when they share nothing. Two random tickets that drop
        a share p are p apart on average. For tickets of equal size it is the mask distance of Early-Bird
        Tickets (arXiv 1909.11957, section 3.2), which divides by all units instead, over 2(1 - p).

        Args:
            other: a ticket of as many layers.
            of: compare only the heads or only the neurons; default both together.

        Raises:
            ValueError: the tickets have different numbers of layers, or `of` is neither.
        """
        if of not in (None, "heads", "neurons"):
            raise ValueError(f"of={of!r}: expected 'heads', 'neurons' or None for both")
        if len(self) != len(other):
            raise ValueError(f"tickets of {len(self)} and {len(other)} layers cannot be compared")
        pairs: list[tuple[Sequence[int], Sequence[int]]] = []
        if of in (None, "heads"):
            pairs += zip(self._heads, other._heads, strict=True)
        if of in (None, "neurons"):
            pairs += zip(self._neurons, other._neurons, strict=True)
        total = sum(len(a) + len(b) for a, b in pairs)
        differing = sum(len(set(a).symmetric_difference(b)) for a, b in pairs)
        return differing / total if total else 0.0

    def check_sizes(self, heads: Sequence[int], neurons: Sequence[int]) -> None:
        """Raises ValueError unless the ticket fits a model with these numbers of heads and neurons a layer."""
        if len(self) != len(heads):
            raise ValueError(f"the ticket has {len(self)} layers, the model {len(heads)}")
        for name, kept, sizes in (("heads", self._heads, heads), ("neurons", self._neurons, neurons)):
            for layer, (units, size) in enumerate(zip(kept, sizes, strict=True)):
                if not units:
                    raise ValueError(f"the ticket keeps no {name} in layer {layer}; at least one must stay")
                if units[-1] >= size:
                    raise ValueError(
                        f"the ticket keeps unit {units[-1]} of the {name} of layer {layer}, "
                        f"but the model has only {size} there: it was drawn from another model"
                    )


def _sorted_unique(units: Iterable[int], name: str, layer: int) -> list[int]:
    indices = sorted(operator.index(unit) for unit in units)
    if len(set(indices)) != len(indices) or any(index < 0 for index in indices):
        raise ValueError(f"{name} of layer {layer} repeat an index or hold a negative one")
    return indices
