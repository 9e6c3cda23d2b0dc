"""Tasks on tables that ask for a tag of each word."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoModelForTokenClassification, PreTrainedModel

from ..errors import UsageError
from ..training.batches import NO_LABEL, split_labelled
from ..training.data import EncodedExamples
from ..training.ragged import Ragged
from .base import Judgement
from .classifier import match_classifier, set_classes
from .columns import Columns, Table, WordTags
from .entities import entity_scores, is_entity_tag
from .table_task import TableTask

logger = logging.getLogger(__name__)

#: The metrics of entities, and that of single words.
_OF_ENTITIES, _OF_WORDS = ("f1", "precision", "recall"), "accuracy"


@dataclass(frozen=True, kw_only=True)
class TaggedWords(EncodedExamples):
    """Sentences in which the first token of each word is labelled with its tag.

    Attributes:
        words: per sentence, the words that it has, those included that were cut off.
    """

    words: list[int]


@dataclass(frozen=True, kw_only=True)
class TaggingTask(TableTask):
    """A tag for each word, such as the named entities of a sentence."""

    columns: Columns = field(default_factory=WordTags)
    counts_examples: bool = False

    @property
    def model_class(self) -> type[Any]:
        """See `Task.model_class`."""
        return AutoModelForTokenClassification

    @property
    def known_metrics(self) -> Sequence[str]:
        """See `TableTask.known_metrics`."""
        return *_OF_ENTITIES, _OF_WORDS

    def check_classes(self, labels: tuple[str, ...], train: Table) -> None:
        """See `TableTask.check_classes`."""
        if len(labels) < 2:
            raise UsageError(f"--label-column: expected two tags at least, found only {', '.join(labels) or 'none'}")
        strange = [tag for tag in labels if not is_entity_tag(tag)]
        if strange and set(self.metrics) & set(_OF_ENTITIES):
            raise UsageError(
                f"--label-column: {', '.join(_OF_ENTITIES)} are of entities, of which tags are B-..., I-... and O; "
                f"found {', '.join(strange[:5])}; of other tags give --metrics {_OF_WORDS}"
            )

    def configure(self, config: Any) -> None:
        """See `Task.configure`."""
        set_classes(config, self.labels, None)

    def match_head(self, model: PreTrainedModel, absent: set[str], labels: Mapping[int, str], seed: int) -> None:
        """See `Task.match_head` and `match_classifier`."""
        match_classifier(model, absent, labels, seed)

    def encode(self, tokenizer: Any, examples: Table, max_length: int) -> TaggedWords:
        """See `Task.encode`. Words behind the cut are neither trained on nor scored, and a line says how many.

        A word that the tokenizer makes nothing of, such as a lone control character, is an unknown one.
        """
        if not tokenizer.is_fast:
            raise UsageError(
                f"task {self.name} needs a fast tokenizer, which knows the word of each token; "
                f"{type(tokenizer).__name__} does not"
            )
        rows = _with_tokens(tokenizer, examples.texts)
        encoding = tokenizer(rows, is_split_into_words=True, truncation=True, max_length=max_length)
        index = {name: i for i, name in enumerate(self.labels)}
        labels, kept = [], []
        for row, words in enumerate(rows):
            tags = [index[tag] for tag in examples.labels[row]] if examples.labels else [0] * len(words)
            owners = encoding.word_ids(row)
            firsts = [o is not None and (not i or o != owners[i - 1]) for i, o in enumerate(owners)]
            labels.append([tags[o] if first else NO_LABEL for o, first in zip(owners, firsts, strict=True)])
            kept.append(sum(firsts))
        lengths = [len(words) for words in rows]
        if cut := sum(lengths) - sum(kept):
            sentences = sum(length > count for length, count in zip(lengths, kept, strict=True))
            logger.warning(
                "%d of %d words, in %d of %d sentences, are behind --max-length %d: they are neither trained on nor "
                "scored, and get no tag", cut, sum(lengths), sentences, len(rows), max_length,
            )  # fmt: skip
        return TaggedWords.from_encoding(
            tokenizer, encoding, {}, token_targets={"labels": Ragged.of(labels)}, words=lengths
        )

    def outputs(self, model: Any, batch: Mapping[str, Any], lengths: Sequence[int]) -> list[torch.Tensor]:
        """See `Task.outputs`: the logits of the words that were not cut off, `(words, labels)`."""
        labels = batch["labels"]
        return split_labelled(model(**batch).logits[labels != NO_LABEL].float(), labels, lengths)

    def answers(self, outputs: Sequence[np.ndarray], encoded: TaggedWords) -> list[dict[str, Any]]:
        """See `Task.answers`: `tags`, one for each word, and their probabilities `scores`; None of words cut off."""
        self.check_finite(outputs)
        answers = []
        for logits, words in zip(outputs, encoded.words, strict=True):
            scores, classes = torch.from_numpy(logits).double().softmax(dim=1).max(dim=1)
            cut = [None] * (words - len(logits))
            tags = [self.labels[i] for i in classes.tolist()]
            answers.append({"tags": [*tags, *cut], "scores": [*scores.tolist(), *cut]})
        return answers

    def score(self, outputs: Sequence[np.ndarray], encoded: TaggedWords) -> Judgement:
        """See `Task.score`."""
        self.check_finite(outputs)
        said = [logits.argmax(axis=1) for logits in outputs]
        right = _tags_of(encoded)
        metrics = {_OF_WORDS: float((np.concatenate(said) == np.concatenate(right)).mean())}
        if set(self.metrics) & set(_OF_ENTITIES):
            metrics |= entity_scores(*([[self.labels[i] for i in row] for row in rows] for rows in (said, right)))
        return Judgement({name: metrics[name] for name in self.metrics})

    def loss(self, outputs: Sequence[np.ndarray], encoded: TaggedWords) -> float:
        """See `Task.loss`: cross-entropy, the mean over words."""
        logits, tags = (torch.from_numpy(np.concatenate(rows)) for rows in (outputs, _tags_of(encoded)))
        return functional.cross_entropy(logits.double(), tags).item()


def _tags_of(encoded: TaggedWords) -> list[np.ndarray]:
    """The index of the tag of each word that was not cut off, by sentence."""
    return [labels[labels != NO_LABEL].numpy() for labels in encoded.token_targets["labels"]]


def _with_tokens(tokenizer: Any, rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Words, the unknown one in the place of those that the tokenizer makes no token of."""
    unique = list({word: None for row in rows for word in row})
    ids = tokenizer(unique, add_special_tokens=False)["input_ids"]
    silent = {word for word, own in zip(unique, ids, strict=True) if not own}
    return [[tokenizer.unk_token if word in silent else word for word in row] for row in rows]


TAGGING_TASK = TaggingTask(name="token-classification", metrics=(*_OF_ENTITIES, _OF_WORDS), main_metric="f1")
