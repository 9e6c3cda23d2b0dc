"""What each op means, in plain PyTorch for any dtype: the definition every backend is tested against."""

from .attention import attention
from .dropout_add_layer_norm import dropout_add_layer_norm
from .feed_forward import feed_forward
from .masked_lm_loss import masked_lm_loss

__all__ = ["attention", "dropout_add_layer_norm", "feed_forward", "masked_lm_loss"]
