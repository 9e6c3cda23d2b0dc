"""A ticket: which heads and neurons of a model are kept."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

_FORMAT = 1


class Ticket:
    """The kept units of a model, layer by layer; immutable.

    Attributes:
        heads: sorted indices of the kept heads, a list a layer.
        neurons: sorted indices of the kept feed-forward neurons, a list a layer.
        heads_of, neurons_of: how many of each the layers of its model have, kept or not; None where that is not known.
            Tickets of the same units are equal, whether they say it or not.

    Raises:
        ValueError: the two have different numbers of layers, a layer repeats an index or has a negative one, or the
            units are not among those of `heads_of` and `neurons_of`, of which one is never given without the other.
        TypeError: an index or a number of units is not an integer; True and False are none.
    """

    def __init__(
        self,
        heads: Iterable[Iterable[int]],
        neurons: Iterable[Iterable[int]],
        *,
        heads_of: Iterable[int] | None = None,
        neurons_of: Iterable[int] | None = None,
    ) -> None:
        self._heads = [_sorted_unique(units, "heads", layer) for layer, units in enumerate(heads)]
        self._neurons = [_sorted_unique(units, "neurons", layer) for layer, units in enumerate(neurons)]
        if len(self._heads) != len(self._neurons):
            raise ValueError(
                f"a ticket needs heads and neurons of the same layers: got {len(self._heads)} layers of heads "
                f"and {len(self._neurons)} of neurons"
            )
        self._sizes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        if heads_of is not None or neurons_of is not None:
            if heads_of is None or neurons_of is None:
                raise ValueError("a ticket says of how many heads and of how many neurons it is, or neither")
            sizes = tuple(map(_integer, heads_of)), tuple(map(_integer, neurons_of))
            self.check_sizes(*sizes)
            self._sizes = sizes

    @property
    def heads(self) -> list[list[int]]:
        """Sorted indices of the kept heads of each layer."""
        return [list(units) for units in self._heads]

    @property
    def neurons(self) -> list[list[int]]:
        """Sorted indices of the kept neurons of each layer."""
        return [list(units) for units in self._neurons]

    @property
    def heads_of(self) -> list[int] | None:
        """How many heads each layer of the ticket's model has, or None."""
        return None if self._sizes is None else list(self._sizes[0])

    @property
    def neurons_of(self) -> list[int] | None:
        """How many neurons each layer of the ticket's model has, or None."""
        return None if self._sizes is None else list(self._sizes[1])

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
        """Writes the ticket as JSON.

        `{"format": 1, "heads_of": [...], "neurons_of": [...], "heads": [[...], ...], "neurons": [[...], ...]}`, without
        the second and the third where the ticket does not say of which model it is.
        """
        sizes = {} if self._sizes is None else {"heads_of": self.heads_of, "neurons_of": self.neurons_of}
        rows = {name: json.dumps(value) for name, value in {"format": _FORMAT, **sizes}.items()}
        for name, layers in (("heads", self._heads), ("neurons", self._neurons)):
            rows[name] = "[\n    " + ",\n    ".join(json.dumps(units) for units in layers) + "\n  ]"
        text = "{\n" + ",\n".join(f'  "{name}": {row}' for name, row in rows.items()) + "\n}\n"
        path = Path(path).resolve()  # a link stays one
        partial = path.with_name(path.name + ".partial")
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike) -> Ticket:
        """Reads what `save` wrote, in this version or before (when files had no format and no sizes).

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a ticket.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if (written := data.get("format", _FORMAT)) != _FORMAT:
                raise ValueError(f"its format is {written!r}, and this version of earlybert_kernels reads {_FORMAT}")
            sizes = {name: data.get(name) for name in ("heads_of", "neurons_of")}
            return cls(data["heads"], data["neurons"], **sizes)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
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
        if len(self) != len(heads) or len(self) != len(neurons):
            raise ValueError(f"the ticket has {len(self)} layers, the model {len(heads)}")
        for name, own, sizes in zip(("heads", "neurons"), self._sizes or (), (heads, neurons), strict=False):
            if (
                layer := next((n for n, (a, b) in enumerate(zip(own, sizes, strict=True)) if a != b), None)
            ) is not None:
                raise ValueError(
                    f"the ticket is of a model with {own[layer]} {name} in layer {layer}, and this one has "
                    f"{sizes[layer]} there"
                )
        for name, kept, sizes in (("heads", self._heads, heads), ("neurons", self._neurons, neurons)):
            for layer, (units, size) in enumerate(zip(kept, sizes, strict=True)):
                if not units:
                    raise ValueError(f"the ticket keeps no {name} in layer {layer}; at least one must stay")
                if units[-1] >= size:
                    raise ValueError(
                        f"the ticket keeps unit {units[-1]} of the {name} of layer {layer}, "
                        f"but the model has only {size} there: it was drawn from another model"
                    )


def _integer(number: Any) -> int:
    """`number` as an int; booleans, which Python counts among the integers, are a mask that was taken for indices."""
    if isinstance(number.item() if hasattr(number, "item") else number, bool):
        raise TypeError(f"expected an integer, found {number}: a ticket lists the indices of units and is no mask")
    return operator.index(number)


def _sorted_unique(units: Iterable[int], name: str, layer: int) -> list[int]:
    indices = sorted(map(_integer, units))
    if len(set(indices)) != len(indices) or any(index < 0 for index in indices):
        raise ValueError(f"{name} of layer {layer} repeat an index or hold a negative one")
    return indices
