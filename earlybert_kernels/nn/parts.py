"""What an encoder layer is made of, whichever model family it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn


@dataclass(frozen=True)
class LayerParts:
    """The linear layers, norms and dropouts of one post-norm encoder layer.

    The modules stay the model's own; pruning swaps the Parameters inside them. Widths are read from the
    weights, so that uneven layers need nothing more. The units of a layer are its heads (`head_size` rows of
    query, key and value, and as many columns of `attention_output`) and its neurons (one row of
    `intermediate` and one column of `output` each). Whether the attention weights are dropped out is up to the mode
    of `self_attention`, as in transformers, and not to that of `attention_dropout`. A family may have no
    `attention_output_dropout`.
    """

    self_attention: nn.Module
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_output: nn.Linear
    attention_norm: nn.LayerNorm
    attention_dropout: nn.Dropout
    intermediate: nn.Linear
    output: nn.Linear
    output_norm: nn.LayerNorm
    output_dropout: nn.Dropout
    head_size: int
    activation: str
    attention_output_dropout: nn.Dropout | None = None

    @property
    def attention_linears(self) -> tuple[nn.Linear, ...]:
        """The four of the attention sublayer, in the order in which `ops.attention_sublayer` takes them."""
        return self.query, self.key, self.value, self.attention_output

    @property
    def num_heads(self) -> int:
        """Heads that the layer has now."""
        return self.query.weight.shape[0] // self.head_size

    @property
    def num_neurons(self) -> int:
        """Feed-forward neurons that the layer has now."""
        return self.intermediate.weight.shape[0]

    def unit_parameters(self) -> Iterator[tuple[nn.Linear, str, int, Literal["heads", "neurons"]]]:
        """Every Parameter that follows the units: its module and name, the dimension the units lie along, which units.

        Those along dimension 1 are the weights that gates are folded into.
        """
        for linear in (self.query, self.key, self.value):
            yield linear, "weight", 0, "heads"
            yield linear, "bias", 0, "heads"
        yield self.attention_output, "weight", 1, "heads"
        yield self.intermediate, "weight", 0, "neurons"
        yield self.intermediate, "bias", 0, "neurons"
        yield self.output, "weight", 1, "neurons"
