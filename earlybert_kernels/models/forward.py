"""What runs inside a converted model: real tokens in, real tokens through, padding only where it is asked for."""

# Annotations are evaluated: transformers and others read off a forward's signature what it can be asked for.
from collections.abc import Iterable
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .. import ops
from ..nn import EncoderLayer, Packing, PaddingFreeEncoder
from ..nn.plain import extension
from ..nn.rotary import Rotary
from .attention_weights import attention_weights
from .batch_arguments import OFFSETS, find_packing, read_offsets, refuse_tracing
from .checks import check_attention
from .family import Embeddings, ModelFamily
from .positions import find_positions
from .registry import family_of

#: Arguments that transformers passes along and that change nothing in an encoder.
_HARMLESS = frozenset({"num_items_in_batch", "output_router_logits", "return_dict", "use_cache"})


@can_return_tuple
def packed_forward(  # type: ignore[misc]  # TransformersKwargs names some again
    base: PreTrainedModel,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    use_cache: bool | None = None,
    first_token_only: bool = False,
    pooled_is_read: bool = False,
    mean_only: bool = False,
    **kwargs: Unpack[TransformersKwargs],
) -> BaseModelOutputWithPoolingAndCrossAttentions:
    """A base model's forward without padding: same arguments, same outputs at every real token, zeros elsewhere.

    A batch that is packed already, `(1, T)`, comes with the offsets of its sequences, as `find_packing` describes
    them. Then `last_hidden_state` and hidden states are `(1, T, E)`, `pooler_output` is `(sequences, E)`, and nothing
    in the forward depends on the batch's values. One without offsets is told by its positions (see `read_offsets`).

    Args:
        first_token_only: what a head that reads only the first token sets, pooled or not: `last_hidden_state` is
            `(sequences, 1, E)`, and the last layer computes no other token, unless hidden states are asked for.
        mean_only: what a head that reads the mean of all tokens sets for a packed batch: `last_hidden_state` is
            `(sequences, 1, E)`, each sequence's mean.
        pooled_is_read: whether a head needs the pooled token. Where none does and a row begins with padding, or is
            nothing else, `pooler_output` is None.

    Raises:
        ValueError: cross-attention or a cache are asked for, a row has padding where the pooled token belongs that a
            head needs or no token at all, or the arguments do not fit together.
        TypeError: offsets are not int32.
        RuntimeError: the model is traced, or exported with a mask (see `refuse_tracing`).
    """
    family = family_of(base)
    # Restored, under a forward that was wrapped while it was converted.
    if not isinstance(family.encoder_of(base), PaddingFreeEncoder):
        named = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
        }
        given = {name: value for name, value in named.items() if value is not None}  # no family takes all
        return type(base).forward(base, **given, **kwargs)
    if encoder_hidden_states is not None or encoder_attention_mask is not None or past_key_values is not None:
        raise ValueError("a converted model is an encoder: it takes no encoder_hidden_states and no past_key_values")
    inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
    options = {"first_token_only": first_token_only, "needs_first_token": first_token_only or pooled_is_read, **kwargs}
    packing, x, hidden_states, attentions = encode(family, base, *inputs, **options)
    pooler = None if packing.starts_with_padding or packing.has_empty else getattr(base, "pooler", None)
    sequence_output: Any  # transformers 5.17 calls both of them FloatTensors, which no tensor is
    pooled: Any
    first: Tensor | None
    if first_token_only:
        sequence_output = first = (x if hidden_states is None else packing.first_tokens(x)).unsqueeze(1)
    elif mean_only:
        sequence_output, first = packing.means(x).unsqueeze(1), None
    else:
        (sequence_output,) = packing.pad(x)
        first = None if pooler is None else packing.first_tokens(x).unsqueeze(1)
    pooled = None if pooler is None or first is None else family.pool(base, first)
    return BaseModelOutputWithPoolingAndCrossAttentions(
        last_hidden_state=sequence_output,
        pooler_output=pooled,
        hidden_states=hidden_states,
        attentions=attentions,
    )


class Encoded(NamedTuple):
    """What `encode` returns.

    Attributes:
        packing: where the real tokens were.
        x: the last layer's output, `(T, E)` or, with `first_token_only` and no hidden states asked for,
            `(sequences, E)`.
        hidden_states: `(B, S, E)` or `(1, T, E)` each, None where a layer's were not asked for; None if none were.
        attentions: what `attention_weights` computes of every layer, if asked for.
    """

    packing: Packing
    x: Tensor
    hidden_states: tuple[Any, ...] | None
    attentions: tuple[Any, ...] | None


def encode(
    family: ModelFamily,
    base: PreTrainedModel,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    *,
    first_token_only: bool = False,
    needs_first_token: bool = False,
    output_attentions: bool | None = None,
    output_hidden_states: bool | int | Iterable[int] | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_k: int | None = None,
    seq_idx: Tensor | None = None,
    **kwargs: Any,
) -> Encoded:
    """Embeds and encodes the real tokens of a padded `(B, S)` batch, or of a packed `(1, T)` one.

    Padding goes before the embeddings, so that nothing that stands on it is read; a token keeps the position that it
    has in its padded row. In a packed batch each sequence counts for itself (see `find_positions`).

    Args:
        first_token_only: see `packed_forward`.
        needs_first_token: refuse rows that begin with padding, and sequences without tokens.
        output_attentions: compute attention weights as well, from their definition and slowly; default the config's.
        output_hidden_states: those of all layers, or of some, or of one, 0 being the embeddings; default the config's.
            As in transformers, 0 by itself asks for none.

    Raises:
        ValueError: not exactly one of the inputs was given, the batch is longer than the model has positions for, mask
            or offsets do not fit the batch, a row begins with padding or is nothing else where its first token is
            needed, or has padding inside where layers have windows, there is no such hidden state, or the batch has no
            columns or is on another device than the model; or an attention was made causal or scaled.
        TypeError: offsets are not int32, ids, types or positions neither int64 nor int32, or there is an argument
            that would change what is computed, or is unknown.
        RuntimeError: the model is traced, or exported with a mask.
    """
    refuse_tracing(attention_mask)
    _check_options(kwargs)
    if family.embeddings is not None and family.embeddings.token_type is None:
        token_type_ids = None  # stock does not look at them
    encoder = family.encoder_of(base)
    for layer in encoder.layer:
        check_attention(family.layer, family.layer.parts["self_attention"], layer.parts.self_attention)
    if output_attentions is None:
        output_attentions = base.config.output_attentions
    if output_hidden_states is None:
        output_hidden_states = base.config.output_hidden_states
    rounds = family.rounds(base.config)
    selection = _selected(output_hidden_states, len(encoder.layer) * rounds + 1)
    tokens = inputs_embeds if input_ids is None else input_ids
    if tokens is None or (input_ids is not None and inputs_embeds is not None):
        raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
    for name, ids in (("input_ids", input_ids), ("token_type_ids", token_type_ids), ("position_ids", position_ids)):
        if ids is not None and ids.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{name} are {ids.dtype}, expected torch.int64 or torch.int32")
    word: Any = base.get_input_embeddings()
    device = word.weight.device
    if tokens.device != device:
        raise ValueError(
            f"the batch is on {tokens.device} and the model on {device}. If torch.nn.DataParallel put it there: "
            "it cannot copy a converted model; use DistributedDataParallel (torchrun) instead"
        )
    shape = (tokens.shape[0], tokens.shape[1])
    if shape[1] == 0:
        raise ValueError(f"the batch has no tokens: its shape is {shape}")
    offsets: dict[str, Any] = dict(
        zip(OFFSETS, (cu_seq_lens_q, max_length_q, cu_seq_lens_k, max_length_k), strict=True)
    )
    offsets |= read_offsets(shape, position_ids, attention_mask, seq_idx=seq_idx, **offsets)
    packing = find_packing(shape, device, attention_mask, **offsets)
    if needs_first_token and packing.has_empty:
        raise ValueError(
            "a row or packed sequence of the batch holds no token, not even the first, which is read of each: leave it "
            "out"
        )
    if needs_first_token and packing.starts_with_padding:
        raise ValueError(
            "the first token of a row is read, and in this batch a row begins with padding: pad on the right "
            "(tokenizer.padding_side = 'right')"
        )
    if packing.has_gaps and any(layer.parts.window is not None for layer in encoder.layer):
        raise ValueError(
            "a row has padding between its tokens, and layers of the model count how far these are apart: pad at the "
            "end of rows"
        )
    is_packed = offsets["cu_seq_lens_q"] is not None
    positions = find_positions(family, base.config, packing, input_ids, position_ids, is_packed=is_packed)
    named = {
        "input_ids": input_ids,
        "token_type_ids": token_type_ids,
        "position_ids": positions.expand(shape),
        "inputs_embeds": inputs_embeds,
    }
    given = {name: value.expand(*shape, *value.shape[2:]) for name, value in named.items() if value is not None}
    packed = (value.unsqueeze(0) for value in packing.pack(*given.values()))
    inputs: dict[str, Any] = dict.fromkeys(named) | dict(zip(given, packed, strict=True))
    x = _embed(family.embeddings, base.get_submodule("embeddings"), **inputs)
    if (project := family.embeddings_projection(base)) is not None:
        x = project(x)
    states: list[Tensor] | None = [] if selection or output_attentions else None
    rotary = _rotary(family, base, x, inputs["position_ids"])
    first_only = first_token_only and not selection
    x = encoder(x, packing, rounds=rounds, first_token_only=first_only, hidden_states=states, rotary=rotary)
    if family.final_norm is not None:
        x = base.get_submodule(family.final_norm)(x)
        if states is not None:
            states[-1] = x
    return _encoded([*encoder.layer] * rounds, packing, x, states, selection, output_attentions, rotary)


def _rotary(family: ModelFamily, base: PreTrainedModel, x: Tensor, positions: Tensor) -> dict[str, Rotary] | None:
    """What the layers' queries and keys take, by name, for packed tokens `(T, E)` at positions `(1, T)`."""
    if family.rotary is None:
        return None
    names = sorted({layer.parts.positions for layer in family.encoder_of(base).layer})
    module = base.get_submodule(family.rotary)
    return {name: tuple(part.squeeze(0) for part in module(x, positions, name)) for name in names}


def _check_options(kwargs: dict) -> None:
    """Raises TypeError for arguments that would be swallowed, where stock attention may heed them."""
    for name, value in kwargs.items():
        if value is None or name in _HARMLESS or (name == "is_causal" and not value):
            continue
        raise TypeError(
            f"a converted model takes no argument {name}={value!r}: its attention is bidirectional, scaled as usual "
            "and dropped out as the config says. Call earlybert_kernels.restore(model) first"
        )


def _selected(output_hidden_states: bool | int | Iterable[int] | None, count: int) -> set[int]:
    """The numbers of the hidden states that were asked for, of `count`."""
    if output_hidden_states is None or isinstance(output_hidden_states, bool):
        return set(range(count)) if output_hidden_states else set()
    if isinstance(output_hidden_states, int):
        output_hidden_states = [output_hidden_states] if output_hidden_states else []
    numbers = list(output_hidden_states)
    if wrong := [number for number in numbers if not -count <= number < count]:
        raise ValueError(f"output_hidden_states names {wrong[0]}; the model has hidden states 0 to {count - 1}")
    return {number % count for number in numbers}


def _encoded(
    layers: list[EncoderLayer],
    packing: Packing,
    x: Tensor,
    states: list[Tensor] | None,
    selection: set[int],
    output_attentions: bool | None,
    rotary: dict[str, Rotary] | None,
) -> Encoded:
    """Puts padding back into what was asked for.

    Args:
        layers: as they were run.
        x: the last one's output.
        states: the embeddings and every layer's output, packed; None if nothing is made of them.
    """
    hidden_states = attentions = None
    if states is None:
        return Encoded(packing, x, hidden_states, attentions)
    if selection:
        padded = iter(packing.pad(*(state for number, state in enumerate(states) if number in selection)))
        hidden_states = tuple(next(padded) if number in selection else None for number in range(len(states)))
    if output_attentions:
        attentions = attention_weights(layers, states, packing, rotary)
    return Encoded(packing, x, hidden_states, attentions)


def _embed(
    fused: Embeddings | None,
    embeddings: nn.Module,
    input_ids: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor,
    inputs_embeds: Tensor | None,
) -> Tensor:
    """`(1, T)` inputs -> `(T, E)`."""
    if fused is None or input_ids is None or not _is_plain(fused, embeddings):
        given = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        if fused is None or fused.position is not None:
            given["position_ids"] = position_ids
        return embeddings(input_ids, inputs_embeds=inputs_embeds, **given).squeeze(0)
    word, norm, dropout = (getattr(embeddings, name) for name in (fused.word, fused.norm, fused.dropout))
    nothing = word.weight.new_zeros(1, word.weight.shape[1])
    types_table = nothing if fused.token_type is None else getattr(embeddings, fused.token_type).weight
    if token_type_ids is None:
        token_type_ids = torch.zeros_like(input_ids)
    position_table = nothing
    if fused.position is None:
        position_ids = torch.zeros_like(input_ids)
    else:
        position = getattr(embeddings, fused.position)
        position_table = _without_gradient(position.weight, position.padding_idx)
    ids, positions, types = (each.squeeze(0).long() for each in (input_ids, position_ids, token_type_ids))
    return ops.embedding_layer_norm(
        ids,
        positions,
        types,
        word.weight,
        position_table,
        types_table,
        norm.weight,
        torch.zeros_like(norm.weight) if norm.bias is None else norm.bias,
        padding_id=word.padding_idx,
        dropout_p=dropout.p if dropout.training else 0.0,
        eps=norm.eps,
    )


def _without_gradient(weight: Tensor, row: int | None) -> Tensor:
    """A table of which one row gets no gradient, as the op has it for words alone; RoBERTa has it for positions."""
    if row is None or not (weight.requires_grad and torch.is_grad_enabled()):
        return weight
    is_row = torch.arange(weight.shape[0], device=weight.device).unsqueeze(1) == row
    return torch.where(is_row, weight.detach(), weight)


def _is_plain(fused: Embeddings, embeddings: nn.Module) -> bool:
    """Whether calling the modules one by one would do what the op does: none is replaced, extended or hooked."""
    tables = [name for name in (fused.word, fused.position, fused.token_type) if name is not None]
    children: dict[str, type[nn.Module]] = dict.fromkeys(tables, nn.Embedding)
    children |= {fused.norm: nn.LayerNorm, fused.dropout: nn.Dropout}
    modules: dict[str, Any] = {name: getattr(embeddings, name, None) for name in children}
    return (
        type(embeddings) is fused.stock
        and all(type(modules[name]) is cls for name, cls in children.items())
        and not any(map(extension, (embeddings, *modules.values())))
        and not any(
            m.max_norm is not None or m.scale_grad_by_freq or m.sparse
            for m in modules.values()
            if isinstance(m, nn.Embedding)
        )
    )
