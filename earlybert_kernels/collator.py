"""From examples to a packed batch: no padding, or as much filling as keeps the shapes of batches few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

#: What belongs to a token, and what to a sequence.
_OF_TOKENS = ("input_ids", "token_type_ids")
_OF_SEQUENCES = ("next_sentence_label", "start_positions", "end_positions")
_OF_EITHER = ("labels", "label")
_NO_LABEL = -100


class PackedCollator:
    """Makes the packed batches that converted models take, from examples as a tokenizer gives them.

    The batch has the names of transformers' `DataCollatorWithFlattening`, which packs for causal language models:
    it drops token types, and takes no labels of whole sequences. This one keeps both.

    With `fill_to`, batches are filled up to a multiple of so many tokens, and shapes are few: those that a
    `CapturedStep` captures. The filling is some more sequences behind the real ones, as many in every batch, that no
    loss reads: their labels are -100, their answers to questions lie outside.
    """

    def __init__(
        self,
        *,
        fill_to: int | None = None,
        batch_size: int | None = None,
        max_length: int | None = None,
        skip_logits: bool = False,
        labels_of: Literal["tokens", "sequences"] | None = None,
    ) -> None:
        """
        Args:
            fill_to: the number of tokens of a batch becomes a multiple of this; needs the next two. Larger numbers
                waste more tokens, half of this on average, and make fewer shapes.
            batch_size: examples in a batch; one with fewer is filled up to the shapes of a full one.
            max_length: tokens of the longest example there can be.
            skip_logits: the batch is for a masked language model and asks it for the loss alone: it holds
                `skip_logits`, and `max_labelled`, the number of labels (with `fill_to`, rounded up to a 16th of the
                tokens).
            labels_of: what labels belong to: "tokens", one to each, or "sequences", which may have several, as
                multi-label classification has. None: one number is a sequence's, and several are its tokens'.

        Raises:
            ValueError: `fill_to` is given without the others, or one of them is out of range.
        """
        if labels_of not in (None, "tokens", "sequences"):
            raise ValueError(f"labels_of is {labels_of!r}, expected 'tokens', 'sequences' or None")
        self._filling: tuple[int, int, int] | None = None
        if fill_to is not None:
            if batch_size is None or max_length is None:
                raise ValueError("fill_to needs batch_size and max_length, from which the number of fillers follows")
            if fill_to < 1 or batch_size < 1 or max_length < 2:
                raise ValueError(
                    f"fill_to is {fill_to}, batch_size {batch_size} and max_length {max_length}; expected at least "
                    "1, 1 and 2"
                )
            self._filling = fill_to, batch_size, max_length
        self.fill_to = fill_to
        self.batch_size = batch_size
        self.max_length = max_length
        self.skip_logits = skip_logits
        self.labels_of = labels_of

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Packs examples, each of which has the same of these (as numbers, lists or tensors) and nothing else is read.

        Args:
            examples: `input_ids`, `token_type_ids`; `labels` or `label`, of the example or of its tokens;
                `next_sentence_label`, `start_positions`, `end_positions`. Of an `attention_mask` only that it is all
                ones: examples come without padding.

        Returns:
            `input_ids`, `position_ids`, `token_type_ids` and labels of tokens, int64 `(1, T)`; labels of sequences
            `(sequences,)`, or `(sequences, labels)`; `cu_seq_lens_q` and `cu_seq_lens_k`, int32 `(sequences + 1,)`;
            `max_length_q` and `max_length_k`, ints.

        Raises:
            ValueError: there are no examples, they have different keys, one is padded, empty or longer than
                `max_length`, there are more than `batch_size`, labels do not fit their tokens or are not there for
                `skip_logits`, or labels are not integers and the batch has to be filled.
        """
        self._check_keys(examples)
        lengths = [len(example["input_ids"]) for example in examples]
        if self._filling is None:
            fillers, longest = [], max(lengths)
        else:
            fill_to, batch_size, longest = self._filling
            fillers = _fillers(lengths, fill_to, batch_size, longest)
        if min(lengths) == 0:
            raise ValueError("an example has no tokens, not even the first, which a classifier reads")
        filling = sum(fillers)
        tokens = sum(lengths) + filling

        batch: dict[str, Any] = {}
        for name in _OF_TOKENS:
            if name in examples[0]:
                batch[name] = _joined(examples, name, lengths, filling, 0)
        for name in _OF_SEQUENCES:
            if name in examples[0]:
                outside = _NO_LABEL if name == "next_sentence_label" else longest
                batch[name] = _stacked(examples, name, len(fillers), outside)
        for name in _OF_EITHER:
            if name in examples[0]:
                if self._is_of_sequence(examples[0][name]):
                    batch["labels"] = _stacked(examples, name, len(fillers), _NO_LABEL)
                else:
                    batch["labels"] = _joined(examples, name, lengths, filling, _NO_LABEL)
                break

        ends = torch.tensor([0, *accumulate([*lengths, *fillers])], dtype=torch.int32)
        starts = ends[:-1].long().repeat_interleave(ends.diff(), output_size=tokens)
        batch["position_ids"] = (torch.arange(tokens) - starts).unsqueeze(0)
        batch["cu_seq_lens_q"] = batch["cu_seq_lens_k"] = ends
        batch["max_length_q"] = batch["max_length_k"] = longest
        if self.skip_logits:
            labelled = int((batch["labels"] != _NO_LABEL).sum())
            step = 1 if self.fill_to is None else -(-tokens // 16)
            batch |= {"skip_logits": True, "max_labelled": -(-labelled // step) * step}
        return batch

    def _is_of_sequence(self, label: Any) -> bool:
        if self.labels_of is None:
            return torch.as_tensor(label).dim() == 0
        return self.labels_of == "sequences"

    def _check_keys(self, examples: Sequence[Mapping[str, Any]]) -> None:
        if not examples:
            raise ValueError("there are no examples to pack")
        known = (*_OF_TOKENS, *_OF_SEQUENCES, *_OF_EITHER)
        expected = [name for name in known if name in examples[0]]
        for number, example in enumerate(examples):
            keys = [name for name in known if name in example]
            if "input_ids" not in keys:
                raise ValueError(f"example {number} has no input_ids, only {', '.join(map(str, example)) or 'nothing'}")
            if keys != expected:
                raise ValueError(
                    f"example {number} has {', '.join(keys)}, and example 0 {', '.join(expected)}; expected the same "
                    "of every example of a batch"
                )
            if "attention_mask" in example and not (torch.as_tensor(example["attention_mask"]) != 0).all():
                raise ValueError(
                    f"example {number} is padded: its attention_mask has zeros; tokenize with padding=False"
                )
        if self.skip_logits and "labels" not in expected:
            raise ValueError("skip_logits=True needs labels, and the examples have none")


def _fillers(lengths: list[int], fill_to: int, batch_size: int, max_length: int) -> list[int]:
    """The lengths of the sequences that fill a batch up: always so many that sequences are always as many."""
    if len(lengths) > batch_size or max(lengths) > max_length:
        raise ValueError(
            f"got {len(lengths)} examples of at most {max(lengths)} tokens, expected at most batch_size, "
            f"{batch_size}, of at most max_length, {max_length}"
        )
    # Each of a full batch's fillers takes 1 token, and together they can take fill_to - 1 more.
    count = -(-(fill_to - 1) // (max_length - 1)) + batch_size - len(lengths)
    tokens = sum(lengths)
    filling = -(-(tokens + count) // fill_to) * fill_to - tokens
    # As equal as can be: attention's cost goes with the square of a length.
    return [filling // count + (i < filling % count) for i in range(count)]


def _joined(examples: Sequence[Mapping[str, Any]], name: str, lengths: list[int], filling: int, fill: int) -> Tensor:
    """int64 `(1, T)`."""
    columns = [torch.as_tensor(example[name]) for example in examples]
    for column, length in zip(columns, lengths, strict=True):
        if tuple(column.shape) != (length,) or column.is_floating_point():
            raise ValueError(
                f"{name} of an example of {length} tokens are {column.dtype} {tuple(column.shape)}, expected one "
                "integer a token" + (", or one number in all" if name.startswith("label") else "")
            )
    return torch.cat([*columns, torch.full((filling,), fill)]).long().unsqueeze(0)


def _stacked(examples: Sequence[Mapping[str, Any]], name: str, fillers: int, fill: int) -> Tensor:
    """`(sequences,)` or `(sequences, labels)`, int64 or float32."""
    rows = [torch.as_tensor(example[name]) for example in examples]
    if len(shapes := {tuple(row.shape) for row in rows}) > 1:
        raise ValueError(f"{name} of the examples have shapes {sorted(shapes)}, expected one shape")
    column = torch.stack(rows)
    if not column.is_floating_point():
        return torch.cat([column, torch.full((fillers, *rows[0].shape), fill)])
    if fillers:
        raise ValueError(
            f"{name} are {column.dtype}: no number of theirs says that a filler does not count, so that the loss "
            "would read it. Train regressions, and on several labels, with batches that are not filled (no fill_to)."
        )
    return column.float()
