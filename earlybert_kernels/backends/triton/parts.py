"""What this backend's sublayers are composed of."""

from __future__ import annotations

from ..sublayers import Parts
from . import attention, dropout_add_layer_norm, feed_forward, fold, products, units

PARTS = Parts(attention, dropout_add_layer_norm, feed_forward, products, units, fold)
