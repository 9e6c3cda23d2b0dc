"""The BERT heads that gain by knowing which tokens are real, and which of them their loss reads."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import MaskedLMOutput, QuestionAnsweringModelOutput
from transformers.models.bert import modeling_bert as hf
from transformers.utils.generic import can_return_tuple

from .. import ops
from ..nn import Packing
from .bert_forward import encode

#: Heads that read the pooled token alone: the last layer need compute no other.
READS_FIRST_TOKEN = (
    hf.BertForSequenceClassification,
    hf.BertForMultipleChoice,
    hf.BertForNextSentencePrediction,
)
#: Heads that cannot do without the pooled token, which a row that begins with padding does not have.
READS_POOLED_TOKEN = (*READS_FIRST_TOKEN, hf.BertForPreTraining)


def forget_labels_on_padding(
    head: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]] | None:
    """A forward pre-hook of heads whose labels belong to tokens: what stands on padding is no label.

    The stock losses read every label that is not -100, on padding as well, where a converted model has no logits.
    """
    given = inspect.signature(type(head).forward).bind_partial(head, *args, **kwargs).arguments
    given = {**given, **given.get("kwargs", {})}
    labels, mask = given.get("labels"), given.get("attention_mask")
    if labels is None or mask is None or labels.shape != mask.shape:
        return None
    arguments = {name: value for name, value in given.items() if name not in ("self", "kwargs")}
    is_padding = (mask == 0).to(labels.device, non_blocking=True)
    return (), {**arguments, "labels": labels.masked_fill(is_padding, -100)}


@can_return_tuple
def question_answering_forward(
    model: hf.BertForQuestionAnswering,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    start_positions: Tensor | None = None,
    end_positions: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs,
) -> QuestionAnsweringModelOutput:
    """`BertForQuestionAnswering.forward` in which padding is no candidate for a start or an end.

    The stock head lets padding take part in the softmax over positions, so that its loss depends on how far a
    batch was padded. Here those logits are the dtype's lowest value: each row has the loss it has alone. A position
    `(B,)` on padding does not count, like one outside the row.

    Of a packed batch the logits are `(1, T)`. The positions `(sequences,)` are counted within each sequence; one
    behind its end does not count.
    """
    outputs = model.bert(
        input_ids,
        attention_mask=attention_mask,
        token_type_ids=token_type_ids,
        position_ids=position_ids,
        inputs_embeds=inputs_embeds,
        cu_seq_lens_q=cu_seq_lens_q,
        max_length_q=max_length_q,
        **{**kwargs, "return_dict": True},
    )
    logits = model.qa_outputs(outputs.last_hidden_state)
    lowest = torch.finfo(logits.dtype).min
    if attention_mask is not None:
        padding = (attention_mask == 0).unsqueeze(-1).to(logits.device, non_blocking=True)
        logits = logits.masked_fill(padding, lowest)
    start_logits, end_logits = (part.squeeze(-1).contiguous() for part in logits.split(1, dim=-1))
    loss = None
    if start_positions is not None and end_positions is not None:
        rows, outside = logits, None
        if cu_seq_lens_q is not None:
            packing = Packing.from_offsets(cu_seq_lens_q, max_length_q, logits.shape[1])
            rows = packing.rows(logits.squeeze(0), fill=lowest)
            outside = torch.arange(rows.shape[1], device=rows.device) >= cu_seq_lens_q.diff().unsqueeze(1)
        elif attention_mask is not None:
            outside = padding.squeeze(-1)
        losses = (
            _position_loss(scores, positions.view(-1), outside)
            for scores, positions in zip(rows.unbind(-1), (start_positions, end_positions), strict=True)
        )
        loss = sum(losses) / 2
    return QuestionAnsweringModelOutput(
        loss=loss,
        start_logits=start_logits,
        end_logits=end_logits,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
    )


def _position_loss(scores: Tensor, positions: Tensor, outside: Tensor | None) -> Tensor:
    """Mean cross-entropy of the positions `(rows,)` that are real ones, given scores `(rows, length)`.

    Args:
        outside: bool `(rows, length)`, True where a row has no token.
    """
    length = scores.shape[1]
    positions = positions.clamp(0, length)
    if outside is not None:
        inside = positions.clamp(max=length - 1).unsqueeze(1)
        positions = positions.masked_fill(outside.gather(1, inside).squeeze(1), length)
    return cross_entropy(scores, positions, ignore_index=length)


def masked_lm_forward(
    model: hf.BertForMaskedLM,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    labels: Tensor | None = None,
    skip_logits: bool = False,
    max_labelled: int | None = None,
    **kwargs,
) -> MaskedLMOutput:
    """`BertForMaskedLM.forward`, with the head and the decoder on the labelled rows alone when `skip_logits`.

    Args:
        labels: `(B, S)`, or `(1, T)` of a packed batch; -100 where there is no label. Those on padding do not count.
        skip_logits: return the loss without logits, which are then never computed for unlabelled tokens.
        max_labelled: with `skip_logits`, at least the number of labels, where the caller knows one: the host then
            need not ask the device how many there are, and head and decoder run on that many rows. Labels beyond it
            are left out (an error on the CPU).

    Raises:
        ValueError: `skip_logits` without labels, or more labels than `max_labelled` (on the CPU).
    """
    inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
    if not skip_logits:
        names = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
        return type(model).forward(model, **dict(zip(names, inputs, strict=True)), labels=labels, **kwargs)
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
    return MaskedLMOutput(loss=loss, hidden_states=hidden_states, attentions=attentions)


def _labelled(labels: Tensor, max_labelled: int | None) -> tuple[Tensor, Tensor]:
    """`(T,)` labels -> the rows that have one, and their labels.

    With `max_labelled`, as many rows as that: those without a label at the end are row 0 again, labelled -100.
    """
    mask = labels != -100
    if max_labelled is None:
        rows = mask.nonzero().squeeze(1)
        return rows, labels.index_select(0, rows)
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and (count := int(mask.sum())) > max_labelled:
        raise ValueError(f"{count} tokens are labelled, more than max_labelled ({max_labelled})")
    rows = torch.nonzero_static(mask, size=max_labelled, fill_value=-1).squeeze(1)
    absent, rows = rows < 0, rows.clamp(min=0)
    return rows, labels.index_select(0, rows).masked_fill(absent, -100)


#: Forwards that take the place of the stock ones on a converted head.
FORWARDS = {
    hf.BertForQuestionAnswering: question_answering_forward,
    hf.BertForMaskedLM: masked_lm_forward,
}
