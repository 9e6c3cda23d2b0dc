"""An encoder layer as ModernBERT's: norms first, rotary positions, a window, and gated linear units."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import linear

from .. import ops
from ..reference.feed_forward import ACTIVATIONS
from .encoder_layer import EncoderLayer, LayerWeights, own_weights, rate
from .gathered_weights import gather_weights
from .parts import PreNormParts
from .rotary import Rotary, rotate


class PreNormLayer(EncoderLayer):
    """Sublayers that begin with a norm, and add to what they were given.

    The active units' weights are gathered, and gates folded into them; what is computed with them is composed of
    plain products, `ops.attention` and elementwise operations.
    """

    parts: PreNormParts

    def gathers_units(self, x: Tensor) -> bool:
        """See `EncoderLayer`."""
        return True

    def forward(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        first_token_only: bool = False,
        weights: LayerWeights | None = None,
        *,
        rotary: Rotary,
    ) -> Tensor:
        """Attention and feed-forward sublayers over packed tokens.

        Args:
            x: `(T, E)`.
            cu_seqlens: int32 `(B + 1,)`, no sequence empty when `first_token_only`.
            max_seqlen: length of the longest sequence.
            first_token_only: return the first token of each sequence, and compute no other query.
            weights: what to compute with in the place of the layer's own; see `gather_weights`.
            rotary: of the tokens' positions.

        Returns:
            `(T, E)`, or `(B, E)` when `first_token_only`.

        Raises:
            TypeError: a module inside the layer was replaced or extended after the layer was made.
        """
        self.check_children()
        parts = self.parts
        if weights is None:
            units = (self.active_heads, self.active_neurons, self.head_gates)
            weights = own_weights(self) if all(each is None for each in units) else gather_weights([self])[0]
        w_out, b_out = weights.attention[2:]
        first = cu_seqlens[:-1] if first_token_only else None
        q, k, v = self._heads(_norm(parts.attention_norm, x), weights, rotary, first)
        packing: dict[str, Any] = {}
        if first is not None:
            x = x.index_select(0, first)
            starts = torch.arange(cu_seqlens.shape[0], dtype=torch.int32, device=x.device)
            packing = {"cu_seqlens_q": starts, "max_seqlen_q": 1}
        dropout_p = parts.attention_dropout_p if parts.self_attention.training else 0.0
        context = ops.attention(q, k, v, cu_seqlens, max_seqlen, **packing, dropout_p=dropout_p, window=parts.window)
        attended = linear(context.flatten(1), w_out, b_out)
        x = x + _dropped(attended, parts.attention_output_dropout)
        w_in, b_in, w_out, b_out = weights.feed_forward
        inputs, gate = linear(_norm(parts.feed_forward_norm, x), w_in, b_in).chunk(2, dim=-1)
        neurons = _dropped(ACTIVATIONS[parts.activation](inputs) * gate, parts.neuron_dropout)
        return x + linear(neurons, w_out, b_out)

    def queries_and_keys(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """`(T, H, D)` each, of all heads, for the layer's input `(T, E)`."""
        q, k, _ = self._heads(_norm(self.parts.attention_norm, x), own_weights(self), rotary, None)
        return q, k

    def _heads(
        self, x: Tensor, weights: LayerWeights, rotary: Rotary, first: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, `(T, H, D)` each; queries `(B, H, D)`, of the tokens `first`, if there are any."""
        weight, bias, size = *weights.attention[:2], self.parts.head_size
        width = weight.shape[0] // 3
        if first is None:
            together = linear(x, weight, bias).view(x.shape[0], 3, width // size, size)
            q, k = rotate(together[:, :2], rotary).unbind(1)
            return q, k, together[:, 2]
        biases = (None, None) if bias is None else (bias[:width], bias[width:])
        q = linear(x.index_select(0, first), weight[:width], biases[0]).unflatten(1, (-1, size))
        k, v = linear(x, weight[width:], biases[1]).view(x.shape[0], 2, width // size, size).unbind(1)
        cos, sin = (t.index_select(0, first) for t in rotary)
        return rotate(q, (cos, sin)), rotate(k, rotary), v


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    if isinstance(norm, nn.LayerNorm):
        return functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
    return x


def _dropped(x: Tensor, dropout: nn.Module) -> Tensor:
    return functional.dropout(x, p) if (p := rate(dropout)) else x
