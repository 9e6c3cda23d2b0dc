"""What each op means, in plain PyTorch for any dtype: the definition every backend is tested against."""

from .attention import attention
from .attention_sublayer import attention_sublayer
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

__all__ = [
    "attention",
    "attention_sublayer",
    "dropout_add_layer_norm",
    "embedding_layer_norm",
    "feed_forward",
    "feed_forward_sublayer",
    "gather_units",
    "masked_lm_loss",
    "optimizer_step",
    "pad",
    "ticket_distance",
    "ticket_masks",
    "unpad",
]
