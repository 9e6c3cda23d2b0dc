"""What runs inside a converted BERT: real tokens in, real tokens through, padding only where it is asked for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.bert import modeling_bert as hf
from transformers.utils.generic import can_return_tuple

from .. import ops
from ..nn import Packing
from .doors import OFFSETS, find_packing, read_offsets, refuse_tracing


@can_return_tuple
def packed_forward(
    base: hf.BertModel,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    past_key_values=None,
    use_cache: bool | None = None,
    first_token_only: bool = False,
    **kwargs,
) -> BaseModelOutputWithPoolingAndCrossAttentions:
    """`BertModel.forward` without padding: same arguments, same outputs at every real token, zeros elsewhere.

    A batch that is packed already, `(1, T)`, comes with the offsets of its sequences, as `find_packing` describes
    them. Then `last_hidden_state` and hidden states are `(1, T, E)`, `pooler_output` is `(sequences, E)`, and nothing
    in the forward depends on the batch's values. One without offsets is told by its positions (see `read_offsets`).

    Args:
        first_token_only: what a head that reads only the pooled token sets: the last layer computes that token
            alone and `last_hidden_state` is `(sequences, 1, E)`. Ignored when hidden states are asked for.

    Raises:
        ValueError: attention weights, cross-attention or a cache are asked for, a row has padding where the pooled
            token belongs or no token at all, or the arguments do not fit together.
        TypeError: offsets are not int32.
        RuntimeError: the model is traced, or exported with a mask (see `refuse_tracing`).
    """
    if encoder_hidden_states is not None or encoder_attention_mask is not None or past_key_values is not None:
        raise ValueError("a converted model is an encoder: it takes no encoder_hidden_states and no past_key_values")
    inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
    packing, x, hidden_states = encode(base, *inputs, first_token_only=first_token_only, **kwargs)
    if base.pooler is not None and packing.starts_with_padding:
        raise ValueError(
            "BERT pools the first token of a row, and in this batch a row begins with padding: "
            "pad on the right (tokenizer.padding_side = 'right')"
        )
    if first_token_only and hidden_states is None:
        sequence_output = first = x.unsqueeze(1)
    else:
        (sequence_output,) = packing.pad(x)
        first = None if base.pooler is None else packing.first_tokens(x).unsqueeze(1)
    return BaseModelOutputWithPoolingAndCrossAttentions(
        last_hidden_state=sequence_output,
        pooler_output=None if base.pooler is None else base.pooler(first),
        hidden_states=hidden_states,
    )


def encode(
    base: hf.BertModel,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    *,
    first_token_only: bool = False,
    output_attentions: bool | None = None,
    output_hidden_states: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_k: int | None = None,
    seq_idx: Tensor | None = None,
    **kwargs,
) -> tuple[Packing, Tensor, tuple[Tensor, ...] | None]:
    """Embeds and encodes the real tokens of a padded `(B, S)` batch, or of a packed `(1, T)` one.

    Padding goes before the embeddings, so that nothing that stands on it is read; a token keeps the position that it
    has in its padded row. In a packed batch without `position_ids` each sequence counts from 0.

    Returns:
        Where the real tokens were; the last layer's output, `(T, E)` or, with `first_token_only` and no hidden
        states asked for, `(sequences, E)`; and the hidden states `(B, S, E)` or `(1, T, E)`, if they were asked for.

    Raises:
        ValueError: attention weights or a selection of hidden states are asked for, not exactly one of the inputs
            was given, mask or offsets do not fit the batch, a sequence is empty and the model pools, or the batch is
            on another device than the model.
        TypeError: offsets are not int32.
        RuntimeError: the model is traced, or exported with a mask.
    """
    refuse_tracing(attention_mask)
    if output_attentions if output_attentions is not None else base.config.output_attentions:
        raise ValueError(
            "a converted model has no attention weights to return (output_attentions=True): they are never "
            "written to memory. Call earlybert_kernels.restore(model) first."
        )
    if output_hidden_states is None:
        output_hidden_states = base.config.output_hidden_states
    if not isinstance(output_hidden_states, bool):
        raise ValueError("a converted model takes output_hidden_states=True or False, not a selection of layers")
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
    tokens = input_ids if input_ids is not None else inputs_embeds
    device = base.get_input_embeddings().weight.device
    if tokens.device != device:
        raise ValueError(
            f"the batch is on {tokens.device} and the model on {device}. If torch.nn.DataParallel put it there: "
            "it cannot copy a converted model; use DistributedDataParallel (torchrun) instead"
        )
    shape = tuple(tokens.shape[:2])
    offsets = dict(zip(OFFSETS, (cu_seq_lens_q, max_length_q, cu_seq_lens_k, max_length_k), strict=True))
    offsets |= read_offsets(shape, position_ids, attention_mask, seq_idx=seq_idx, **offsets)
    packing = find_packing(shape, device, attention_mask, **offsets)
    if base.pooler is not None and packing.has_empty:
        raise ValueError(
            "a row or packed sequence of the batch holds no token, not even the first, which BERT pools: leave it out"
        )
    if position_ids is None:
        is_packed = offsets["cu_seq_lens_q"] is not None
        position_ids = packing.positions() if is_packed else torch.arange(packing.seq, device=device)
    named = {
        "input_ids": input_ids,
        "token_type_ids": token_type_ids,
        "position_ids": position_ids.expand(shape),
        "inputs_embeds": inputs_embeds,
    }
    given = {name: value.expand(*shape, *value.shape[2:]) for name, value in named.items() if value is not None}
    packed = (value.unsqueeze(0) for value in packing.pack(*given.values()))
    x = _embed(base.embeddings, **dict.fromkeys(named) | dict(zip(given, packed, strict=True)))
    hidden_states: list[Tensor] | None = [] if output_hidden_states else None
    x = base.encoder(
        x, packing, first_token_only=first_token_only and not output_hidden_states, hidden_states=hidden_states
    )
    return packing, x, None if hidden_states is None else packing.pad(*hidden_states)


def _embed(
    embeddings: hf.BertEmbeddings,
    input_ids: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor,
    inputs_embeds: Tensor | None,
) -> Tensor:
    """`(1, T)` inputs -> `(T, E)`."""
    if inputs_embeds is not None or not _is_plain(embeddings):
        return embeddings(input_ids, token_type_ids, position_ids, inputs_embeds).squeeze(0)
    word, norm, dropout = embeddings.word_embeddings, embeddings.LayerNorm, embeddings.dropout
    if token_type_ids is None:
        token_type_ids = torch.zeros_like(input_ids)
    return ops.embedding_layer_norm(
        *(ids.squeeze(0).long() for ids in (input_ids, position_ids, token_type_ids)),
        word.weight,
        embeddings.position_embeddings.weight,
        embeddings.token_type_embeddings.weight,
        norm.weight,
        norm.bias,
        padding_id=word.padding_idx,
        dropout_p=dropout.p if dropout.training else 0.0,
        eps=norm.eps,
    )


def _is_plain(embeddings: nn.Module) -> bool:
    """Whether calling the modules one by one would do what the op does: none is replaced, extended or hooked."""
    children = {
        "word_embeddings": nn.Embedding,
        "position_embeddings": nn.Embedding,
        "token_type_embeddings": nn.Embedding,
        "LayerNorm": nn.LayerNorm,
        "dropout": nn.Dropout,
    }
    modules = {name: getattr(embeddings, name, None) for name in children}
    return (
        type(embeddings) is hf.BertEmbeddings
        and all(type(modules[name]) is cls for name, cls in children.items())
        and not any(map(_is_extended, (embeddings, *modules.values())))
        and not any(
            m.max_norm is not None or m.scale_grad_by_freq or m.sparse
            for m in modules.values()
            if isinstance(m, nn.Embedding)
        )
    )


def _is_extended(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in module.__dict__
