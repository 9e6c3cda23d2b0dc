"""One encoder layer on packed tokens: gated, masked, or both."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import ops
from .parts import LayerParts
from .units import fold_gates, head_rows


class EncoderLayer(nn.Module):
    """A post-norm transformer layer that never sees padding and computes only the units that are kept.

    It registers the children of the layer it replaces under their own names, so Parameters and `state_dict`
    keys stay what they were.

    Attributes:
        parts: the layer's linear layers, norms and dropouts.
        head_gates, neuron_gates: float32 Parameters `(heads,)` and `(neurons,)` while gates are enabled, else None.
        active_heads, active_neurons: int64 indices of the kept units while a ticket is applied, else None.
        gradient_checkpointing: recompute the layer in the backward pass; transformers' switch sets it for all layers.
    """

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
        return self.active_heads is not None or self.active_neurons is not None

    def extra_repr(self) -> str:
        """Kept of all units, and whether they are gated."""
        heads, neurons = self.parts.num_heads, self.parts.num_neurons
        active_heads = heads if self.active_heads is None else len(self.active_heads)
        active_neurons = neurons if self.active_neurons is None else len(self.active_neurons)
        gated = ", gated" if self.head_gates is not None else ""
        return f"heads={active_heads}/{heads}, neurons={active_neurons}/{neurons}{gated}"

    def forward(self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int, first_token_only: bool = False) -> Tensor:
        """Attention and feed-forward sublayers over packed tokens.

        Args:
            x: `(T, E)`.
            cu_seqlens: int32 `(B + 1,)`, no sequence empty when `first_token_only`.
            max_seqlen: length of the longest sequence.
            first_token_only: return the first token of each sequence, and compute no other query.

        Returns:
            `(T, E)`, or `(B, E)` when `first_token_only`.

        Raises:
            TypeError: a module inside the layer was replaced after the layer was made.
        """
        for parent, name, child in () if torch.compiler.is_compiling() else self._children:
            # The weights are read from `parts`: a module put in another's place would silently not count.
            if parent._modules.get(name) is not child:
                raise TypeError(
                    f"{type(parent).__name__}.{name} was replaced after the model was converted; call "
                    "earlybert_kernels.restore(model) before changing its modules, and convert it again"
                )
        return self._feed_forward(self._attention(x, cu_seqlens, max_seqlen, first_token_only))

    def _attention(self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int, first_token_only: bool) -> Tensor:
        parts, size = self.parts, self.parts.head_size
        projections = [parts.query, parts.key, parts.value]
        weights = [linear.weight for linear in projections]
        biases = [linear.bias for linear in projections]
        out_weight, gates = parts.attention_output.weight, self.head_gates
        if self.active_heads is not None:
            rows = head_rows(self.active_heads, size)
            weights = [w.index_select(0, rows) for w in weights]
            biases = [b.index_select(0, rows) for b in biases]
            out_weight = out_weight.index_select(1, rows)
            gates = None if gates is None else gates.index_select(0, self.active_heads)
        if gates is not None:
            out_weight = fold_gates(out_weight, gates, columns=size)

        residual, query_packing = x, {}
        if first_token_only:
            residual = x.index_select(0, cu_seqlens[:-1])
            starts = torch.arange(cu_seqlens.numel(), dtype=torch.int32, device=x.device)
            query_packing = {"cu_seqlens_q": starts, "max_seqlen_q": 1}
        inputs = (residual, x, x)
        heads = weights[0].shape[0] // size
        q, k, v = (
            nn.functional.linear(i, w, b).view(-1, heads, size)
            for i, w, b in zip(inputs, weights, biases, strict=True)
        )
        context = ops.attention(
            q, k, v, cu_seqlens, max_seqlen, dropout_p=_rate(parts.attention_dropout), **query_packing
        )
        h = nn.functional.linear(context.flatten(1), out_weight, parts.attention_output.bias)
        return _add_norm(h, residual, parts.attention_norm, parts.attention_output_dropout)

    def _feed_forward(self, x: Tensor) -> Tensor:
        parts, gates = self.parts, self.neuron_gates
        w_in, b_in, w_out = parts.intermediate.weight, parts.intermediate.bias, parts.output.weight
        if self.active_neurons is not None:
            w_in, b_in = w_in.index_select(0, self.active_neurons), b_in.index_select(0, self.active_neurons)
            w_out = w_out.index_select(1, self.active_neurons)
            gates = None if gates is None else gates.index_select(0, self.active_neurons)
        if gates is not None:
            w_out = fold_gates(w_out, gates)
        h = ops.feed_forward(x, w_in, b_in, w_out, parts.output.bias, activation=parts.activation)
        return _add_norm(h, x, parts.output_norm, parts.output_dropout)


def _rate(dropout: nn.Dropout) -> float:
    return dropout.p if dropout.training else 0.0


def _add_norm(x: Tensor, residual: Tensor, norm: nn.LayerNorm, dropout: nn.Dropout) -> Tensor:
    return ops.dropout_add_layer_norm(
        x, residual, norm.weight, norm.bias, dropout_p=_rate(dropout), eps=norm.eps
    )
