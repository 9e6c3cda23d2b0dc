"""A stack of encoder layers on packed tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .gathered_weights import gather_weights, gathers
from .packing import Packing


class PaddingFreeEncoder(nn.Module):
    """Runs `EncoderLayer`s over the real tokens of a batch; no layer sees padding.

    The layers are registered as `layer`, the name that BERT-like encoders give theirs.
    """

    layer: Any  # an nn.ModuleList of EncoderLayers: the type of the list does not say of what

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layer = layers

    def forward(
        self, x: Tensor, packing: Packing, *, first_token_only: bool = False, hidden_states: list[Tensor] | None = None
    ) -> Tensor:
        """Runs all layers.

        Args:
            x: `(T, E)`, the embedded tokens.
            packing: where the sequences are.
            first_token_only: return the first token of each sequence, and compute no other in the last layer.
            hidden_states: a list to which x and the output of every layer are added, `(T, E)` each.

        Returns:
            `(T, E)`, or `(B, E)` when `first_token_only`.
        """
        if hidden_states is not None:
            hidden_states.append(x)
        last = len(self.layer) - 1
        if first_token_only and last < 0:
            return packing.first_tokens(x)
        weights = gather_weights(self.layer) if gathers(self.layer, x) else [None] * len(self.layer)
        for number, layer in enumerate(self.layer):
            first_only = first_token_only and number == last
            x = layer(x, packing.cu_seqlens, packing.max_seqlen, first_only, weights[number])
            if hidden_states is not None:
                hidden_states.append(x)
        return x
