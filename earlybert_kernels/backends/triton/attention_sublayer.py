"""The attention sublayer of this backend's parts."""

from __future__ import annotations

from functools import partial

from ..sublayers import attention_sublayer
from .parts import PARTS

forward, backward = partial(attention_sublayer.forward, PARTS), partial(attention_sublayer.backward, PARTS)
