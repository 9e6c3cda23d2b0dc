"""The BERT heads: what stands on padding counts in none of them, and some gain by knowing which tokens are real."""

# Annotations are evaluated: transformers and others read off a forward's signature what it can be asked for.
import functools
from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import MaskedLMOutput, QuestionAnsweringModelOutput
from transformers.models.bert import modeling_bert as hf
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .. import ops
from ..nn import Packing, PaddingFreeEncoder
from .bert_forward import encode
from .doors import OFFSETS, read_offsets, refuse_tracing

_NO_LABEL = -100

#: Heads that read the pooled token alone: the last layer need compute no other.
READS_FIRST_TOKEN = (
    hf.BertForSequenceClassification,
    hf.BertForMultipleChoice,
    hf.BertForNextSentencePrediction,
)
#: Heads whose `labels` belong to tokens.
LABELS_TOKENS = (hf.BertForPreTraining, hf.BertLMHeadModel, hf.BertForMaskedLM, hf.BertForTokenClassification)

#: Heads in which every token is scored, so that padding has to be left out.
SCORES_TOKENS = (*LABELS_TOKENS, hf.BertForQuestionAnswering)


def stock_class(head: nn.Module) -> type | None:
    """The head class of transformers whose forward `head` has, or None."""
    for cls in (*READS_FIRST_TOKEN, *LABELS_TOKENS, hf.BertForQuestionAnswering):
        if isinstance(head, cls) and type(head).forward is cls.forward:
            return cls
    return None


def prepare(names: tuple[str, ...], head: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """What a converted head's forward is called with in the place of its arguments.

    What stands on padding never counts: a label there is as if it were -100. Of a packed batch the offsets are read
    where it comes without them (see `read_offsets`). For `BertLMHeadModel`, a label counts only if the token before
    it, from which it is predicted, is a real one of the same sequence.

    Args:
        names: of the arguments that the forward takes by position.
        head: the module that is called.
        args, kwargs: what it is called with.

    Returns:
        No positional arguments, and keyword arguments.

    Raises:
        ValueError: `BertForMultipleChoice` is given a packed batch, or `read_offsets` refuses the batch.
        TypeError: there are more positional arguments than names.
        RuntimeError: the model is traced, or exported with a mask.
    """
    refuse_tracing(kwargs.get("attention_mask"))
    if len(args) > len(names):
        raise TypeError(f"{type(head).__name__} takes {len(names)} positional arguments, got {len(args)}")
    kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
    cls, mask = stock_class(head), kwargs.get("attention_mask")
    tokens = kwargs.get("input_ids")
    shape = tokens.shape if tokens is not None else getattr(kwargs.get("inputs_embeds"), "shape", ())[:-1]
    given = {name: kwargs.get(name) for name in ("seq_idx", *OFFSETS)}
    if len(shape) > 1:
        rows = (shape[:-1].numel(), shape[-1])
        kwargs.update(read_offsets(rows, kwargs.get("position_ids"), mask, **given))
    offsets = kwargs.get("cu_seq_lens_q")
    if cls is hf.BertForMultipleChoice and offsets is not None:
        raise ValueError("BertForMultipleChoice takes no packed batch, in which its choices could not be told apart")
    if cls in READS_FIRST_TOKEN:
        kwargs["first_token_only"] = True
    if cls is hf.BertForPreTraining:
        kwargs["pooled_is_read"] = True
    if cls in LABELS_TOKENS:
        for name in ("labels", "shift_labels"):
            if kwargs.get(name) is not None:
                predicted = cls is hf.BertLMHeadModel and name == "labels"
                kwargs[name] = _counting(kwargs[name], mask, offsets, predicted)
    return (), kwargs


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
def question_answering_forward(
    model: hf.BertForQuestionAnswering,
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
    """`BertForQuestionAnswering.forward` in which padding is no candidate for a start or an end.

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
    loss = None
    if start_positions is not None and end_positions is not None:
        rows, real = logits, None
        if cu_seq_lens_q is not None:
            packing = Packing.from_offsets(cu_seq_lens_q, max_length_q, logits.shape[1])
            rows = packing.rows(logits.squeeze(0), fill=lowest)
            real = torch.arange(rows.shape[1], device=rows.device) < cu_seq_lens_q.diff().unsqueeze(1)
        elif padding is not None:
            real = ~padding.squeeze(-1)
        if previous is not None:  # logits may come from under its autocast, where losses are float32
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        loss = sum(
            _answer_loss(scores, positions, real)
            for scores, positions in zip(rows.unbind(-1), (start_positions, end_positions), strict=True)
        )
        loss = loss / 2
    return QuestionAnsweringModelOutput(
        loss=loss,
        start_logits=start_logits,
        end_logits=end_logits,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
    )


def is_fused(head: nn.Module) -> bool:
    """Whether the BERT of a head is converted; forwards that were wrapped meanwhile outlive `restore`."""
    return isinstance(head.bert.encoder, PaddingFreeEncoder)


def _answer_loss(scores: Tensor, positions: Tensor, real: Tensor | None) -> Tensor:
    """Cross-entropy of scores `(rows, length)` at `positions`, those outside or where `real` is False left out."""
    length = scores.shape[1]
    positions = positions.view(-1).clamp(0, length)
    if real is not None:
        counts = real.gather(1, positions.clamp(max=length - 1).unsqueeze(1)).squeeze(1)
        positions = positions.masked_fill(~counts, length)
    return functional.cross_entropy(scores, positions, ignore_index=length)


def masked_lm_forward(
    model: hf.BertForMaskedLM,
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
    """`BertForMaskedLM.forward`, with the head and the decoder on the labelled rows alone when `skip_logits`.

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
    model: hf.BertForMaskedLM, inputs: tuple, labels: Tensor, max_labelled: int | None, **kwargs
) -> MaskedLMOutput:
    packing, x, hidden_states, attentions = encode(model.bert, *inputs, **kwargs)
    rows, labels = _labelled(*packing.pack(labels), max_labelled)
    head = model.cls.predictions
    hidden = head.transform(x.index_select(0, rows))
    loss = ops.masked_lm_loss(hidden, labels, head.decoder.weight, head.decoder.bias, max_labelled=max_labelled)
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


#: Forwards that take the place of the stock ones on a converted head.
FORWARDS = {
    hf.BertForQuestionAnswering: question_answering_forward,
    hf.BertForMaskedLM: masked_lm_forward,
}
