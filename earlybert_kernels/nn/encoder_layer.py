"""One encoder layer on packed tokens: gated, masked, or both."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import ops
from ..units import unit_list
from .parts import LayerParts
from .plain import extension


class LayerWeights(NamedTuple):
    """The weights and biases of a layer's linear layers, and which of its units they are to be computed for.

    Attributes:
        attention: query, key, value and output, each weight with its bias behind it.
        feed_forward: the same of the two of the feed-forward block.
        active_heads, active_neurons, head_gates, neuron_gates: as in `EncoderLayer`; None where the weights are the
            active units' alone and the gates are folded into them.
    """

    attention: tuple[Tensor, ...]
    feed_forward: tuple[Tensor, ...]
    active_heads: Tensor | None = None
    active_neurons: Tensor | None = None
    head_gates: Tensor | None = None
    neuron_gates: Tensor | None = None


class EncoderLayer(nn.Module):
    """A post-norm transformer layer that never sees padding and computes only the units that are kept.

    It registers the children of the layer it replaces under their own names, so Parameters and `state_dict`
    keys stay what they were.

    Attributes:
        parts: the layer's linear layers, norms and dropouts.
        head_gates, neuron_gates: float32 Parameters `(heads,)` and `(neurons,)` while gates are enabled, else None.
        active_heads, active_neurons: int64 indices of the kept units while a ticket is applied, else None; or, where
            `reserve_masks` was called, bool `(heads,)` and `(neurons,)`, True for the kept ones.
        gradient_checkpointing: whether a subclass recomputes the layer in the backward pass.
    """

    head_gates: nn.Parameter | None
    neuron_gates: nn.Parameter | None
    active_heads: Tensor | None
    active_neurons: Tensor | None

    def __init__(self, stock: nn.Module, parts: LayerParts) -> None:
        super().__init__()
        for name, child in stock.named_children():
            self.add_module(name, child)
        self.parts = parts
        self._children = tuple((m, name, child) for m in self.modules() for name, child in m.named_children())
        self.register_parameter("head_gates", None)
        self.register_parameter("neuron_gates", None)
        self.register_buffer("active_heads", None, persistent=False)
        self.register_buffer("active_neurons", None, persistent=False)
        self.gradient_checkpointing = False
        self.training = stock.training

    @property
    def is_masked(self) -> bool:
        """Whether a ticket is applied that drops units of this layer."""
        return any(len(kept) < units for kept, units in self._kept())

    def extra_repr(self) -> str:
        """Kept of all units, and whether they are gated."""
        heads, neurons = (f"{len(kept)}/{units}" for kept, units in self._kept())
        gated = ", gated" if self.head_gates is not None else ""
        return f"heads={heads}, neurons={neurons}{gated}"

    def _kept(self) -> tuple[tuple[list[int], int], tuple[list[int], int]]:
        """Of heads and of neurons: the kept ones, and how many there are."""
        heads, neurons = self.parts.num_heads, self.parts.num_neurons
        return (unit_list(self.active_heads, heads), heads), (unit_list(self.active_neurons, neurons), neurons)

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
        for parent, name, child in () if torch.compiler.is_compiling() else self._children:
            # The weights are read from `parts`: a module put in another's place would silently not count.
            if parent._modules.get(name) is not child:
                raise TypeError(
                    f"{type(parent).__name__}.{name} was replaced after the model was converted; call "
                    "earlybert_kernels.restore(model) before changing its modules, and convert it again; an adapter is "
                    "trained on the restored model and merged (model.merge_and_unload()) before converting"
                )
            if (found := extension(child)) is not None:
                raise TypeError(
                    f"{type(parent).__name__}.{name} {found}, put there after the model was converted, which does not "
                    "run it; call earlybert_kernels.restore(model) first"
                )
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
            dropout_p=_rate(parts.attention_output_dropout),
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
            dropout_p=_rate(parts.output_dropout),
            eps=parts.output_norm.eps,
            x_low=x_low,
            return_low=return_low,
        )


def own_weights(layer: EncoderLayer) -> LayerWeights:
    """A layer's Parameters."""
    attention, feed_forward = (
        tuple(p for linear in linears for p in (linear.weight, linear.bias))
        for linears in (layer.parts.attention_linears, (layer.parts.intermediate, layer.parts.output))
    )
    units = (layer.active_heads, layer.active_neurons, layer.head_gates, layer.neuron_gates)
    return LayerWeights(attention, feed_forward, *units)


def _rate(dropout: nn.Dropout | None) -> float:
    return dropout.p if dropout is not None and dropout.training else 0.0
