"""The ops: one function each, the same on every backend. `backends(name)` says where one can run."""

from .attention import attention
from .attention_sublayer import attention_sublayer
from .dispatch import BackendUnavailableError, backends, record_backends, use_backend
from .dropout_add_layer_norm import dropout_add_layer_norm
from .embedding_layer_norm import embedding_layer_norm
from .feed_forward import feed_forward
from .feed_forward_sublayer import feed_forward_sublayer
from .gather_units import gather_units
from .masked_lm_loss import masked_lm_loss
from .optimizer_step import optimizer_step
from .padding import pad, unpad
from .ticket_distance import ticket_distance
from .ticket_masks import ticket_masks

lamb_step = optimizer_step  # its name before it did AdamW's step as well

__all__ = [
    "BackendUnavailableError",
    "attention",
    "attention_sublayer",
    "backends",
    "dropout_add_layer_norm",
    "embedding_layer_norm",
    "feed_forward",
    "feed_forward_sublayer",
    "gather_units",
    "lamb_step",
    "masked_lm_loss",
    "optimizer_step",
    "pad",
    "record_backends",
    "ticket_distance",
    "ticket_masks",
    "unpad",
    "use_backend",
]
