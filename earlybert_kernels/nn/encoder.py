"""A stack of encoder layers on packed tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from .at_once import forward_at_once
from .encoder_layer import EncoderLayer
from .gathered_weights import gather_weights, gathers
from .packing import Packing
from .plain import extension
from .rotary import Rotary


class PaddingFreeEncoder(nn.Module):
    """Runs `EncoderLayer`s over the real tokens of a batch; no layer sees padding.

    The layers are registered as `layer`, the name that BERT-like encoders give theirs.
    """

    layer: Any  # an nn.ModuleList of EncoderLayers: the type of the list does not say of what

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layer = layers

    def forward(
        self,
        x: Tensor,
        packing: Packing,
        *,
        rounds: int = 1,
        first_token_only: bool = False,
        hidden_states: list[Tensor] | None = None,
        rotary: Mapping[str, Rotary] | None = None,
    ) -> Tensor:
        """Runs all layers.

        Args:
            x: `(T, E)`, the embedded tokens.
            packing: where the sequences are.
            rounds: how often to run all layers, one after the other.
            first_token_only: return the first token of each sequence, and compute no other in the last layer.
            hidden_states: a list to which x and the output of every layer are added, `(T, E)` each.
            rotary: what layers with rotary positions take, by the name that their parts have for them.

        Returns:
            `(T, E)`, or `(B, E)` when `first_token_only`.
        """
        if hidden_states is not None:
            hidden_states.append(x)
        last = len(self.layer) * rounds - 1
        if first_token_only and last < 0:
            return packing.first_tokens(x)
        if hidden_states is None and rotary is None:
            out = forward_at_once([*self.layer] * rounds, x, packing.cu_seqlens, packing.max_seqlen, first_token_only)
            if out is not None:
                return out
        weights = gather_weights(self.layer) if gathers(self.layer, x) else [None] * len(self.layer)
        hands_on, x_low = all(map(_hands_on, self.layer)), None
        for number, (layer, own) in enumerate([*zip(self.layer, weights, strict=True)] * rounds):
            first_only, return_low = first_token_only and number == last, hands_on and number < last
            low = (x_low, return_low) if hands_on else ()
            turned = {} if rotary is None else {"rotary": rotary[layer.parts.positions]}
            x = layer(x, packing.cu_seqlens, packing.max_seqlen, first_only, own, *low, **turned)
            x, x_low = x if return_low else (x, None)
            if hidden_states is not None:
                hidden_states.append(x)
        return x


class PaddingFreeList(nn.ModuleList, PaddingFreeEncoder):
    """The same where a model has its layers in a list and no module around it: the list itself."""

    def __init__(self, layers: Iterable[nn.Module] = ()) -> None:
        nn.Module.__init__(self)
        self.extend(layers)

    @property
    def layer(self) -> Any:
        """The layers."""
        return self


def _hands_on(layer: EncoderLayer) -> bool:
    """Whether a layer may take and return the low copy of what it computes with.

    Hooks see the tensors that they know, and may change them; one that is checkpointed is not to keep a copy.
    """
    return layer.takes_low and extension(layer) is None and not (layer.gradient_checkpointing and layer.training)
