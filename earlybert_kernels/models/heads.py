"""The heads of converted models: padding counts in none of them, and some gain by knowing which tokens are real."""

# Annotations are evaluated: transformers and others read off a forward's signature what it can be asked for.
import functools
from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput, QuestionAnsweringModelOutput
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .. import ops
from ..nn import Packing, PaddingFreeEncoder
from .batch_arguments import OFFSETS, read_offsets, refuse_tracing
from .family import Head, Labels, Rows
from .forward import encode
from .registry import family_of, head_of

_NO_LABEL = -100


def named(names: tuple[str, ...], module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """What a module is called with, all of it by name; TypeError if there are more positional arguments than names."""
    if len(args) > len(names):
        raise TypeError(f"{type(module).__name__} takes {len(names)} positional arguments, got {len(args)}")
    return (), {**dict(zip(names, args, strict=False)), **kwargs}


def prepare(names: tuple[str, ...], head: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """What a converted head's forward is called with in the place of its arguments.

    What stands on padding never counts: a label there is as if it were -100. Of a packed batch the offsets are read
    where it comes without them (see `read_offsets`). A label that is predicted from
    the token before counts only if that one is a real one of the same sequence.

    Args:
        names: of the arguments that the forward takes by position.
        head: the module that is called.
        args, kwargs: what it is called with.

    Returns:
        No positional arguments, and keyword arguments.

    Raises:
        ValueError: a multiple-choice head is given a packed batch, or `read_offsets` refuses the batch.
        TypeError: there are more positional arguments than names.
        RuntimeError: the model is traced, or exported with a mask.
    """
    refuse_tracing(kwargs.get("attention_mask"))
    _, kwargs = named(names, head, args, kwargs)
    kind, mask = _kind_of(head), kwargs.get("attention_mask")
    tokens = kwargs.get("input_ids")
    shape = tokens.shape if tokens is not None else getattr(kwargs.get("inputs_embeds"), "shape", torch.Size())[:-1]
    given = {name: kwargs.get(name) for name in ("seq_idx", *OFFSETS)}
    if len(shape) > 1:
        rows = (shape[:-1].numel(), shape[-1])
        kwargs.update(read_offsets(rows, kwargs.get("position_ids"), mask, **given))
    offsets = kwargs.get("cu_seq_lens_q")
    if offsets is not None and not kind.takes_packed:
        raise ValueError(f"{kind.stock.__name__} takes no packed batch, in which its choices could not be told apart")
    if kind.rows is Rows.FIRST and not kind.averages(head.config):
        kwargs["first_token_only"] = True
    elif kind.rows is Rows.FIRST and offsets is not None:
        kwargs["mean_only"] = True
    if kind.rows is Rows.ALL_AND_POOLED:
        kwargs["pooled_is_read"] = True
    if kind.labels in (Labels.TOKEN, Labels.NEXT_TOKEN):
        for name in ("labels", "shift_labels"):
            if kwargs.get(name) is not None:
                predicted = kind.labels is Labels.NEXT_TOKEN and name == "labels"
                kwargs[name] = _counting(kwargs[name], mask, offsets, predicted)
    return (), kwargs


def _kind_of(head: nn.Module) -> Head:
    kind = head_of(head)
    if kind is None:
        raise TypeError(
            f"{type(head).__name__}.forward was replaced after the model was converted, which does not run it; call "
            "earlybert_kernels.restore(model) first"
        )
    return kind


def _counting(labels: Tensor, mask: Tensor | None, offsets: Tensor | None, predicted: bool) -> Tensor:
    """Labels of tokens, with -100 where none counts.

    Args:
        labels: `(B, S)`, or as many numbers in another shape.
        mask: `(B, S)`, non-zero at real tokens, or None.
        offsets: int32 `(sequences + 1,)` of a packed batch, or None.
        predicted: whether a label is predicted from the token before.
    """
    if mask is not None and mask.numel() == labels.numel():
        real = (mask != 0).to(labels.device, non_blocking=True)
        if predicted:
            real = functional.pad(real[:, :-1], (1, 0)) & real
        labels = labels.reshape(real.shape).masked_fill(~real, _NO_LABEL)
    if offsets is not None and predicted:
        first = labels.new_zeros(labels.numel() + 1, dtype=torch.bool)
        # Empty sequences at the end begin behind the last token.
        first.index_fill_(0, offsets[:-1].long().clamp(0, labels.numel()), True)
        labels = labels.masked_fill(first[:-1].view_as(labels), _NO_LABEL)
    return labels


@can_return_tuple
def question_answering_forward(  # type: ignore[misc]  # TransformersKwargs names some again
    model: PreTrainedModel,
    previous: Callable | None,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    start_positions: Tensor | None = None,
    end_positions: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Unpack[TransformersKwargs],
) -> QuestionAnsweringModelOutput:
    """A question-answering head's forward in which padding is no candidate for a start or an end.

    The stock head lets padding take part in the softmax over positions, so that its loss depends on how far a
    batch was padded. Here those logits are the dtype's lowest value: each row has the loss it has alone, and a
    position that stands on padding does not count, as one outside the row.

    Of a packed batch the logits are `(1, T)`. The positions `(sequences,)` are counted within each sequence; one at
    its length or beyond does not count.

    Args:
        previous: the forward that was on the model before it was converted, which computes the logits; None for its
            class's.
    """
    forward = previous or functools.partial(type(model).forward, model)
    inputs = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": token_type_ids,
        "position_ids": position_ids,
        "inputs_embeds": inputs_embeds,
        **kwargs,
        "return_dict": True,
    }
    if not is_fused(model):
        return forward(**inputs, start_positions=start_positions, end_positions=end_positions)
    if cu_seq_lens_q is not None:
        inputs |= {"cu_seq_lens_q": cu_seq_lens_q, "max_length_q": max_length_q}
    outputs = forward(**inputs)
    logits = torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)
    lowest = torch.finfo(logits.dtype).min
    padding = None
    if attention_mask is not None:
        padding = (attention_mask == 0).unsqueeze(-1).to(logits.device, non_blocking=True)
        logits = logits.masked_fill(padding, lowest)
    start_logits, end_logits = (part.squeeze(-1).contiguous() for part in logits.split(1, dim=-1))
    loss: Any = None  # transformers 5.17 calls it a FloatTensor, which no tensor is
    if start_positions is not None and end_positions is not None:
        rows, real = logits, None
        if cu_seq_lens_q is not None and max_length_q is not None:
            packing = Packing.from_offsets(cu_seq_lens_q, max_length_q, logits.shape[1])
            rows = packing.rows(logits.squeeze(0), fill=lowest)
            real = torch.arange(rows.shape[1], device=rows.device) < cu_seq_lens_q.diff().unsqueeze(1)
        elif padding is not None:
            real = ~padding.squeeze(-1)
        if previous is not None:  # logits may come from under its autocast, where losses are float32
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        start_loss, end_loss = (
            _answer_loss(scores, positions, real)
            for scores, positions in zip(rows.unbind(-1), (start_positions, end_positions), strict=True)
        )
        loss = (start_loss + end_loss) / 2
    return QuestionAnsweringModelOutput(
        loss=loss,
        start_logits=start_logits,
        end_logits=end_logits,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
    )


def is_fused(head: PreTrainedModel) -> bool:
    """Whether the base model of a head is converted; forwards that were wrapped meanwhile outlive `restore`."""
    return isinstance(family_of(head).encoder_of(head.base_model), PaddingFreeEncoder)


def _answer_loss(scores: Tensor, positions: Tensor, real: Tensor | None) -> Tensor:
    """Cross-entropy of scores `(rows, length)` at `positions`, those outside or where `real` is False left out."""
    length = scores.shape[1]
    positions = positions.view(-1).clamp(0, length)
    if real is not None:
        counts = real.gather(1, positions.clamp(max=length - 1).unsqueeze(1)).squeeze(1)
        positions = positions.masked_fill(~counts, length)
    return functional.cross_entropy(scores, positions, ignore_index=length)


def masked_lm_forward(  # type: ignore[misc]  # TransformersKwargs names some again
    model: PreTrainedModel,
    previous: Callable | None,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    labels: Tensor | None = None,
    skip_logits: bool = False,
    max_labelled: int | None = None,
    **kwargs: Unpack[TransformersKwargs],
) -> MaskedLMOutput:
    """A masked language model's forward, with the head and the decoder on the labelled rows alone when `skip_logits`.

    Args:
        previous: the forward that was on the model before it was converted, which is called where logits are wanted;
            None for its class's.
        labels: `(B, S)`, or `(1, T)` of a packed batch; -100 where there is no label. On padding they do not count.
        skip_logits: return the loss without logits, which are then never computed for unlabelled tokens.
        max_labelled: with `skip_logits`, at least the number of labels, where the caller knows one: the host then
            need not ask the device how many there are, and head and decoder run on that many rows. Labels beyond it
            are left out (an error on the CPU).

    Raises:
        TypeError: `skip_logits` of a model with a forward of its own, or one that has been restored.
        ValueError: `skip_logits` without labels, or more labels than `max_labelled` (on the CPU).
    """
    inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
    if not skip_logits:
        names = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
        forward = previous or functools.partial(type(model).forward, model)
        return forward(**dict(zip(names, inputs, strict=True)), labels=labels, **kwargs)
    if previous is not None or not is_fused(model):
        raise TypeError(
            "skip_logits=True needs a converted model whose forward was not wrapped before: convert it first, then "
            "prepare it (with Accelerate, say)"
        )
    if labels is None:
        raise ValueError("skip_logits=True needs labels: without a loss and without logits nothing is left to compute")
    return _labelled_rows_forward(model, inputs, labels, max_labelled, **kwargs)


@can_return_tuple
def _labelled_rows_forward(
    model: PreTrainedModel, inputs: tuple, labels: Tensor, max_labelled: int | None, **kwargs: Any
) -> MaskedLMOutput:
    base: Any = model.base_model
    decoder: Any = _kind_of(model).decoder  # heads without one keep their forward
    linear: Any = model.get_submodule(decoder.linear)
    packing, x, hidden_states, attentions = encode(family_of(model), base, *inputs, **kwargs)
    (labels,) = packing.pack(labels)
    rows, labels = _labelled(labels, max_labelled)
    hidden = decoder.transform(model, x.index_select(0, rows))
    loss: Any = ops.masked_lm_loss(hidden, labels, linear.weight, linear.bias, max_labelled=max_labelled)
    # The op's loss of no label at all is 0; the mean of nothing is not a number, as in the stock head.
    loss = torch.where((labels != _NO_LABEL).any(), loss, torch.nan)
    return MaskedLMOutput(loss=loss, hidden_states=hidden_states, attentions=attentions)


def _labelled(labels: Tensor, max_labelled: int | None) -> tuple[Tensor, Tensor]:
    """`(T,)` labels -> the rows that have one, and their labels.

    With `max_labelled`, as many rows as that: those without a label at the end are row 0 again, labelled -100.
    """
    mask = labels != _NO_LABEL
    if max_labelled is None or not labels.shape[0]:  # no row 0 in a batch that is all padding
        rows = mask.nonzero().squeeze(1)
        return rows, labels.index_select(0, rows)
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and (count := int(mask.sum())) > max_labelled:
        raise ValueError(f"{count} tokens are labelled, more than max_labelled ({max_labelled})")
    rows = torch.nonzero_static(mask, size=max_labelled, fill_value=-1).squeeze(1)
    absent, rows = rows < 0, rows.clamp(min=0)
    return rows, labels.index_select(0, rows).masked_fill(absent, _NO_LABEL)


def forward_of(head: Head) -> Callable | None:
    """What takes the place of the stock forward on a converted head; None where that stays."""
    if head.labels is Labels.SPAN:
        return question_answering_forward
    return None if head.decoder is None else masked_lm_forward


#: All that `forward_of` gives.
FORWARDS = (question_answering_forward, masked_lm_forward)
