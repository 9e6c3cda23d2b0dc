"""Which compact class stands for which stock one."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PreTrainedModel
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY


class ClassPairs:
    """The compact class of every class of transformers that has one, and back."""

    def __init__(self) -> None:
        self._compact: dict[type, type] = {}
        self._stock: dict[type, type] = {}

    def __iter__(self) -> Iterator[type]:
        """The stock classes that have a compact one."""
        return iter(self._compact)

    def add(self, stock: type[PreTrainedModel], compact: type[PreTrainedModel]) -> None:
        """Makes two classes counterparts."""
        self._compact[stock], self._stock[compact] = compact, stock
        # transformers looks up by class name what a model can record (output_hidden_states), and writes it down
        # when a model of the class is built; ours are also made by changing the class of a stock one.
        dict.__setitem__(_CAN_RECORD_REGISTRY, str(compact), stock._can_record_outputs)

    def compact(self, cls: type) -> type | None:
        """The compact class of a stock (or compact) class, or None if there is none."""
        return cls if cls in self._stock else self._compact.get(cls)

    def stock(self, cls: type) -> type:
        """The stock class of a compact class; any other class is its own."""
        return self._stock.get(cls, cls)


#: `compact_models` fills it.
COMPACT_CLASSES = ClassPairs()
