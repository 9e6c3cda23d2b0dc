"""An encoder layer as BERT's, whose two sublayers are fused."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from .. import ops
from ..ops.dispatch import gathers_units
from .encoder_layer import EncoderLayer, LayerWeights, own_weights, rate
from .parts import PostNormParts


class PostNormLayer(EncoderLayer):
    """Attention and feed-forward sublayers that end with a norm."""

    parts: PostNormParts
    takes_low: ClassVar[bool] = True

    def gathers_units(self, x: Tensor) -> bool:
        """See `EncoderLayer`."""
        own, norm = own_weights(self), self.parts.output_norm
        given = (*own.feed_forward, norm.weight, norm.bias, own.active_neurons, own.neuron_gates)
        return gathers_units("feed_forward_sublayer", x, *given, size=x.shape[0])

    def queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(T, H, D)` each, of all heads, for the layer's input `(T, E)`."""
        q, k = (linear(x).unflatten(-1, (-1, self.parts.head_size)) for linear in (self.parts.query, self.parts.key))
        return q, k

    def forward(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        first_token_only: bool = False,
        weights: LayerWeights | None = None,
        x_low: Tensor | None = None,
        return_low: bool = False,
    ) -> Any:
        """Attention and feed-forward sublayers over packed tokens.

        Args:
            x: `(T, E)`.
            cu_seqlens: int32 `(B + 1,)`, no sequence empty when `first_token_only`.
            max_seqlen: length of the longest sequence.
            first_token_only: return the first token of each sequence, and compute no other query.
            weights: what to compute with in the place of the layer's own; see `gather_weights`.
            x_low, return_low: the copies of x and of the result under autocast, as in `ops.feed_forward_sublayer`.

        Returns:
            `(T, E)`, or `(B, E)` when `first_token_only`; with `return_low` that, and its copy or None.

        Raises:
            TypeError: a module inside the layer was replaced or extended after the layer was made.
        """
        self.check_children()
        parts = self.parts
        weights = own_weights(self) if weights is None else weights
        attention: tuple[Tensor, ...] = (*weights.attention, parts.attention_norm.weight, parts.attention_norm.bias)
        feed_forward: tuple[Tensor, ...] = (*weights.feed_forward, parts.output_norm.weight, parts.output_norm.bias)
        x, x_low = ops.attention_sublayer(
            x,
            cu_seqlens,
            max_seqlen,
            *attention,
            head_size=parts.head_size,
            active_heads=weights.active_heads,
            head_gates=weights.head_gates,
            first_token_only=first_token_only,
            attention_dropout_p=parts.attention_dropout.p if parts.self_attention.training else 0.0,
            dropout_p=rate(parts.attention_output_dropout),
            eps=parts.attention_norm.eps,
            x_low=x_low,
            return_low=True,
        )
        return ops.feed_forward_sublayer(
            x,
            *feed_forward,
            active_neurons=weights.active_neurons,
            neuron_gates=weights.neuron_gates,
            activation=parts.activation,
            dropout_p=rate(parts.output_dropout),
            eps=parts.output_norm.eps,
            x_low=x_low,
            return_low=return_low,
        )
