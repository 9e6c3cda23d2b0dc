"""What encoder layers on packed tokens have in common: they are gated, masked, or both."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..units import unit_list
from .parts import LayerParts
from .plain import extension


class LayerWeights(NamedTuple):
    """The weights and biases of a layer's linear layers, and which of its units they are to be computed for.

    Attributes:
        attention: of the attention sublayer's linear layers (`LayerParts.attention_linears`), each weight with its
            bias, or None, behind it.
        feed_forward: the same of the feed-forward sublayer's.
        active_heads, active_neurons, head_gates, neuron_gates: as in `EncoderLayer`; None where the weights are the
            active units' alone and the gates are folded into them.
    """

    attention: tuple[Any, ...]  # of Tensors and None
    feed_forward: tuple[Any, ...]
    active_heads: Tensor | None = None
    active_neurons: Tensor | None = None
    head_gates: Tensor | None = None
    neuron_gates: Tensor | None = None


class EncoderLayer(nn.Module):
    """A transformer layer that never sees padding and computes only the units that are kept.

    It registers the children of the layer it replaces under their own names, so Parameters and `state_dict`
    keys stay what they were.

    Attributes:
        parts: the layer's linear layers, norms and dropouts.
        head_gates, neuron_gates: float32 Parameters `(heads,)` and `(neurons,)` while gates are enabled, else None.
        active_heads, active_neurons: int64 indices of the kept units while a ticket is applied, else None; or, where
            `reserve_masks` was called, bool `(heads,)` and `(neurons,)`, True for the kept ones.
        gradient_checkpointing: whether a subclass recomputes the layer in the backward pass.
        takes_low: whether it takes and returns copies of its input and output in the dtype of its products.
    """

    takes_low: ClassVar[bool] = False

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

    @abstractmethod
    def gathers_units(self, x: Tensor) -> bool:
        """Whether a call gathers the active units' weights itself, where it is given none."""

    def check_children(self) -> None:
        """Raises TypeError if a module inside the layer was replaced or extended after the layer was made.

        Not under torch.compile, which does not see such changes.
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


def own_weights(layer: EncoderLayer) -> LayerWeights:
    """A layer's Parameters."""
    attention, feed_forward = (
        tuple(p for linear in linears for p in (linear.weight, linear.bias))
        for linears in (layer.parts.attention_linears, layer.parts.feed_forward_linears)
    )
    units = (layer.active_heads, layer.active_neurons, layer.head_gates, layer.neuron_gates)
    return LayerWeights(attention, feed_forward, *units)


def rate(dropout: nn.Module | None) -> float:
    """The probability that a dropout has in its mode; 0 for none."""
    return dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
