"""The sublayers of an encoder layer, composed of the parts of a backend: one text for all backends on GPUs."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple


class Parts(NamedTuple):
    """The modules of a backend that its sublayers are composed of. Backends agree on what they take and return.

    Units are what the backend's `units.computed_units` makes of active units: None where all are computed.

    Attributes:
        attention, dropout_add_layer_norm, feed_forward: the ops' `forward` and `backward`.
        products: `linear`, `linear_grad_input`, `linear_grad_weight`.
        units: `computed_units`, `take`, `put`; `used`, how much of a product's dimension is in use where only the
            device knows, else None; and `present`, which of the units that there is room for are there, likewise.
        fold: `fold`, `unfold`.
    """

    attention: ModuleType
    dropout_add_layer_norm: ModuleType
    feed_forward: ModuleType
    products: ModuleType
    units: ModuleType
    fold: ModuleType
