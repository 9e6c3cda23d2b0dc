"""What an encoder layer is made of, whichever model family it comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import nn


class UnitParameter(NamedTuple):
    """A Parameter that follows the units of a layer.

    Attributes:
        linear, name: its module, and its name there.
        dim: the dimension that the units lie along; 1 for the weights that gates are folded into.
        unit: which units.
        times: how often they all stand there, one behind the other: 3 where a Parameter is query, key and value.
    """

    linear: nn.Linear
    name: str
    dim: int
    unit: Literal["heads", "neurons"]
    times: int = 1


@dataclass(frozen=True, kw_only=True)
class LayerParts(ABC):
    """The modules of one encoder layer; of those of every kind, the ones that all have.

    They stay the model's own; pruning swaps the Parameters inside them. Widths are read from the
    weights, so that uneven layers need nothing more. The units of a layer are its heads, `head_size` columns of
    `attention_output` each, and its neurons, one column of `output` each, and the rows that make those. Whether the
    attention weights are dropped out is up to the mode of `self_attention`, as in transformers. `window` is that of
    `ops.attention`.
    """

    self_attention: nn.Module
    attention_output: nn.Linear
    output: nn.Linear
    head_size: int
    activation: str

    window: int | None = None

    @property
    @abstractmethod
    def attention_linears(self) -> tuple[nn.Linear, ...]:
        """The linear layers of the attention sublayer, in the order in which a layer takes them."""

    @property
    @abstractmethod
    def feed_forward_linears(self) -> tuple[nn.Linear, ...]:
        """The same of the feed-forward sublayer."""

    @abstractmethod
    def unit_parameters(self) -> Iterator[UnitParameter]:
        """Every Parameter that follows the units."""

    @property
    def num_heads(self) -> int:
        """Heads that the layer has now."""
        return self.attention_output.weight.shape[1] // self.head_size

    @property
    def num_neurons(self) -> int:
        """Feed-forward neurons that the layer has now."""
        return self.output.weight.shape[1]

    def sizes(self, unit: Literal["heads", "neurons"]) -> tuple[int, int]:
        """How many of these units the layer has now, and how many rows or columns each has in a Parameter."""
        return (self.num_heads, self.head_size) if unit == "heads" else (self.num_neurons, 1)


@dataclass(frozen=True, kw_only=True)
class PostNormParts(LayerParts):
    """Those of a layer as BERT's, whose sublayers end with a norm.

    A family may lack `attention_output_dropout` or `output_dropout`. The mode of `attention_dropout` does not count.
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_norm: nn.LayerNorm
    attention_dropout: nn.Dropout
    intermediate: nn.Linear
    output_norm: nn.LayerNorm
    attention_output_dropout: nn.Dropout | None = None
    output_dropout: nn.Dropout | None = None

    @property
    def attention_linears(self) -> tuple[nn.Linear, ...]:
        """See `LayerParts`."""
        return self.query, self.key, self.value, self.attention_output

    @property
    def feed_forward_linears(self) -> tuple[nn.Linear, ...]:
        """See `LayerParts`."""
        return self.intermediate, self.output

    def unit_parameters(self) -> Iterator[UnitParameter]:
        """See `LayerParts`."""
        for linear in (self.query, self.key, self.value):
            yield UnitParameter(linear, "weight", 0, "heads")
            yield UnitParameter(linear, "bias", 0, "heads")
        yield UnitParameter(self.attention_output, "weight", 1, "heads")
        yield UnitParameter(self.intermediate, "weight", 0, "neurons")
        yield UnitParameter(self.intermediate, "bias", 0, "neurons")
        yield UnitParameter(self.output, "weight", 1, "neurons")


@dataclass(frozen=True, kw_only=True)
class PreNormParts(LayerParts):
    """Those of a layer as ModernBERT's, whose sublayers begin with a norm and whose neurons are gated linear units.

    Linear layers and norms may have no bias.

    Attributes:
        query_key_value: makes all three, all heads of one behind all heads of the other.
        attention_norm: nothing in a first layer, whose input has been normalised.
        input_and_gate: makes the neurons' inputs, and behind them what multiplies their activations.
        neuron_dropout: of the products.
        attention_dropout_p: of the attention weights.
        positions: the name of the rotary positions that queries and keys take.
    """

    attention_norm: nn.LayerNorm | nn.Identity
    query_key_value: nn.Linear
    attention_output_dropout: nn.Dropout | nn.Identity
    feed_forward_norm: nn.LayerNorm
    input_and_gate: nn.Linear
    neuron_dropout: nn.Dropout
    attention_dropout_p: float
    positions: str

    @property
    def attention_linears(self) -> tuple[nn.Linear, ...]:
        """See `LayerParts`."""
        return self.query_key_value, self.attention_output

    @property
    def feed_forward_linears(self) -> tuple[nn.Linear, ...]:
        """See `LayerParts`."""
        return self.input_and_gate, self.output

    def unit_parameters(self) -> Iterator[UnitParameter]:
        """See `LayerParts`."""
        yield from _rows(self.query_key_value, "heads", 3)
        yield UnitParameter(self.attention_output, "weight", 1, "heads")
        yield from _rows(self.input_and_gate, "neurons", 2)
        yield UnitParameter(self.output, "weight", 1, "neurons")


def _rows(linear: nn.Linear, unit: Literal["heads", "neurons"], times: int) -> Iterator[UnitParameter]:
    yield UnitParameter(linear, "weight", 0, unit, times)
    if linear.bias is not None:
        yield UnitParameter(linear, "bias", 0, unit, times)
