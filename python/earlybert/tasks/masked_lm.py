"""Guessing hidden words: what a BERT is pre-trained on."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoModelForMaskedLM, PreTrainedModel

from ..errors import UsageError
from ..training.batches import NO_LABEL, split_labelled
from ..training.data import EncodedExamples
from ..training.ragged import Ragged
from .base import Judgement, Source, Task, TaskData
from .documents import Corpus, Documents
from .heads import head_of, renew
from .masking import Masking
from .tokenizing import flat, map_cached, tokenizer_key

logger = logging.getLogger(__name__)

#: Documents that one process is to have at least: for fewer the processes take longer to start than they save.
_DOCUMENTS_PER_PROCESS = 5000


@dataclass(frozen=True, kw_only=True)
class MaskedSequences(EncodedExamples):
    """Sequences in which tokens are hidden: others in every epoch, or always the same.

    Attributes:
        masking: how.
        words: per sequence the word of each token, where whole words are hidden.
        fixed: whether every epoch hides what the first does.
    """

    masking: Masking
    words: Ragged | None = None
    fixed: bool = False

    @property
    def of_tokens(self) -> frozenset[str]:
        """See `EncodedExamples.of_tokens`: with the labels, which there are when an example is asked for."""
        return super().of_tokens | {"labels"}

    @property
    def can_skip_logits(self) -> bool:
        """See `EncodedExamples.can_skip_logits`."""
        return True

    def contents(self) -> dict[str, Any]:
        """See `EncodedExamples.contents`: with how tokens are hidden, to which the tokenizer's size belongs."""
        return super().contents() | {"masking": asdict(self.masking), "words": self.words}

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """A sequence with `labels` of its hidden tokens, -100 elsewhere."""
        index = number % len(self)
        example = super().__getitem__(index)
        words = None if self.words is None else self.words[index].numpy()
        shown, labels = self.masking.apply(example["input_ids"].numpy(), index if self.fixed else number, words)
        return example | {"input_ids": torch.from_numpy(shown), "labels": torch.from_numpy(labels)}

    def as_held_out(self) -> Self:
        """The same sequences with masks that are the same in every run."""
        return replace(self, fixed=True, masking=replace(self.masking, seed=0))


@dataclass(frozen=True, kw_only=True)
class MaskedLMTask(Task):
    """Masked language modelling.

    Attributes:
        corpus: where the documents come from.
        probability: share of the tokens that are hidden.
        whole_words: whether all tokens of a word are hidden together.
        seed: of what is hidden.
    """

    name: str = "mlm"
    main_metric: str = "accuracy"
    counts_examples: bool = False
    corpus: Corpus = field(default_factory=Corpus)
    probability: float = 0.15
    whole_words: bool = False
    seed: int = 0

    @property
    def model_class(self) -> type[Any]:
        """See `Task.model_class`."""
        return AutoModelForMaskedLM

    @property
    def metric_names(self) -> tuple[str, ...]:
        """See `Task.metric_names`."""
        return ("accuracy",)

    def configure(self, config: Any) -> None:
        """See `Task.configure`: there is nothing to say."""

    def load(self, source: Source) -> TaskData:
        """See `Task.load`."""
        return self.corpus.load(source)

    def match_head(self, model: PreTrainedModel, absent: set[str], labels: Mapping[int, str], seed: int) -> None:
        """See `Task.match_head`."""
        is_new = renew(model, absent, seed)
        logger.info("head: %s", "new; the checkpoint has none for hidden words" if is_new else "the checkpoint's")

    def encode(self, tokenizer: Any, examples: Documents, max_length: int) -> MaskedSequences:
        """See `Task.encode`. Documents are cut into sequences, none of which has parts of two."""
        if tokenizer.mask_token_id is None:
            raise UsageError(f"{type(tokenizer).__name__} has no token to hide others with, such as [MASK]")
        if not tokenizer.is_fast:
            raise UsageError(f"expected a fast tokenizer, which cuts texts into sequences; found {type(tokenizer)}")
        masking = Masking(
            self.probability,
            tokenizer.mask_token_id,
            len(tokenizer),
            tuple(sorted(set(tokenizer.all_special_ids))),
            self.seed,
        )
        whole_words = self.whole_words

        def encode(batch: dict[str, list], numbers: list[int]) -> dict[str, list]:
            return _sequences(tokenizer, batch["text"], numbers, max_length, masking, whole_words)

        processes = min(len(os.sched_getaffinity(0)), len(examples) // _DOCUMENTS_PER_PROCESS)
        dataset = map_cached(
            examples.dataset, encode, tokenizer_key(tokenizer), max_length, whole_words, processes=processes
        )
        names = [name for name in tokenizer.model_input_names if name in dataset.column_names]
        if not len(dataset):
            raise UsageError("expected texts with words, found none that the tokenizer knows")
        count = len(examples)
        if left_out := count - len(np.unique(flat(dataset, "document"))):
            logger.warning("left out %d of %d documents, without a word that the tokenizer knows", left_out, count)
        return MaskedSequences.from_encoding(
            tokenizer,
            {name: Ragged.column(dataset, name) for name in names},
            {},
            masking=masking,
            words=Ragged.column(dataset, "words") if whole_words else None,
        )

    def outputs(self, model: Any, batch: Mapping[str, Any], lengths: Sequence[int]) -> list[torch.Tensor]:
        """See `Task.outputs`: of each hidden token the loss, and 1 where it is guessed, `(labels, 2)`."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        hidden = model.base_model(**inputs).last_hidden_state
        hidden_rows = batch["labels"] != NO_LABEL
        labels = batch["labels"][hidden_rows]
        decoder: Any = head_of(model).decoder
        rows = decoder.transform(model, hidden[hidden_rows])  # of these tokens alone: all would take most of the memory
        logits = model.get_submodule(decoder.linear)(rows).float()
        losses = functional.cross_entropy(logits, labels, reduction="none")
        found = torch.stack([losses, (logits.argmax(dim=-1) == labels).float()], dim=-1)
        return split_labelled(found, batch["labels"], lengths)

    def score(self, outputs: Sequence[np.ndarray], encoded: MaskedSequences) -> Judgement:
        """See `Task.score`: the share of the hidden tokens that is guessed."""
        self.check_finite(outputs)
        return Judgement({"accuracy": _mean(outputs, 1)})

    def loss(self, outputs: Sequence[np.ndarray], encoded: MaskedSequences) -> float:
        """See `Task.loss`: the mean over hidden tokens."""
        return _mean(outputs, 0)


def _mean(outputs: Sequence[np.ndarray], column: int) -> float:
    return float(np.concatenate([rows[:, column] for rows in outputs]).mean(dtype=np.float64))


def _sequences(
    tokenizer: Any, texts: list[str], numbers: list[int], max_length: int, masking: Masking, whole_words: bool
) -> dict[str, list]:
    """The sequences of some documents: the columns that `MaskedLMTask.encode` reads."""
    for number, text in zip(numbers, texts, strict=True):
        if not isinstance(text, str):
            raise UsageError(f"expected texts, found {text!r:.40} in document {number}; is it the --text-column?")
    encoding = tokenizer(
        texts,
        truncation=True,
        max_length=max_length,
        return_overflowing_tokens=True,
        return_attention_mask=False,
    )
    kept = [row for row, ids in enumerate(encoding["input_ids"]) if masking.maskable(np.array(ids, np.int64)).any()]
    columns = [name for name in ("input_ids", "token_type_ids") if name in encoding]
    owners = encoding["overflow_to_sample_mapping"]
    made = {name: [encoding[name][row] for row in kept] for name in columns}
    made["document"] = [numbers[owners[row]] for row in kept]
    if whole_words:
        made["words"] = [
            np.array([-1 if word is None else word for word in encoding.word_ids(row)], np.int32) for row in kept
        ]
    return made
