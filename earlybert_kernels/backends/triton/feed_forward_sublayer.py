"""The feed-forward sublayer of this backend's parts."""

from __future__ import annotations

from functools import partial

from ..sublayers import feed_forward_sublayer
from .parts import PARTS

forward, backward = partial(feed_forward_sublayer.forward, PARTS), partial(feed_forward_sublayer.backward, PARTS)
