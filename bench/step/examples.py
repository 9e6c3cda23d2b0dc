"""Where the sequences of a measurement come from: SST-2, SQuAD, or chance."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from earlybert.errors import MissingFileError
from earlybert.tasks import Questions, Sentences, get_task
from earlybert.tasks.masked_lm import MaskedSequences
from earlybert.tasks.masking import Masking
from earlybert.training.batches import Batch
from earlybert.training.data import EncodedExamples
from earlybert.training.ragged import Ragged

from ..lengths import draw_lengths

#: SQuAD's official training file, or the beginning of it.
_SQUAD_FILES = "train-v1.1*.json"
#: Smallest id that is drawn: 0 is padding, and needs to be told from words.
_FIRST_ID = 1
_CLASSES = 2


def random_examples(mix: str, count: int, max_length: int, vocabulary: int) -> EncodedExamples:
    """Random tokens and labels in sequences of real lengths.

    Args:
        mix: whose lengths, as `draw_lengths` names them.
        count: how many sequences.
        max_length: tokens that longer ones are cut to.
        vocabulary: ids there are.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = [min(length, max_length) for length in draw_lengths(mix, count)]
    ids = [torch.randint(_FIRST_ID, vocabulary, (length,), generator=generator) for length in lengths]
    return EncodedExamples(
        features={"input_ids": Ragged.of(ids)},
        pad_values={"input_ids": 0},
        targets={"labels": torch.randint(_CLASSES, (count,), generator=generator)},
    )


def read_sst2(folder: Path, count: int, tokenizer: Any, max_length: int) -> EncodedExamples:
    """Random sentences of SST-2's training split with their labels: `count`, or all where there are fewer."""
    task = get_task("sst2")
    examples = task.read(folder / "train.tsv")
    rows = _sample(list(zip(examples.texts, examples.labels, strict=True)), count)
    texts, labels = (list(column) for column in zip(*rows, strict=True))
    return task.encode(tokenizer, Sentences(texts, labels), max_length)


def read_squad(folder: Path, count: int, tokenizer: Any, max_length: int) -> EncodedExamples:
    """Windows on the contexts of random questions of SQuAD v1.1's training file, with their answers: `count` or more.

    Raises:
        MissingFileError: there is no such file in the folder.
    """
    paths = sorted(folder.glob(_SQUAD_FILES))
    if not paths:
        raise MissingFileError(f"{folder}: no file {_SQUAD_FILES}")
    task = get_task("squad")
    questions = Questions(_sample(task.read(paths[0]).items, count))
    return task.encode(tokenizer, questions, max_length)


def read_texts(folder: Path, count: int, tokenizer: Any, max_length: int) -> MaskedSequences:
    """The texts of a folder's first text file one behind the other, cut into full sequences, with words hidden.

    That is how run_mlm-like scripts group texts, so that none of their tokens is padding.

    Raises:
        MissingFileError: there is no text file in the folder.
    """
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise MissingFileError(f"{folder}: no text file")
    size = max_length - 2  # [CLS] and [SEP]
    ids: list[int] = []
    with paths[0].open(encoding="utf-8") as file:
        for line in file:
            if len(ids) >= count * size:
                break
            ids += tokenizer(line, add_special_tokens=False, verbose=False)["input_ids"]
    rows = [
        [tokenizer.cls_token_id, *ids[start : start + size], tokenizer.sep_token_id]
        for start in range(0, len(ids) - size + 1, size)
    ]
    examples = EncodedExamples({"input_ids": Ragged.of(rows[:count])}, {"input_ids": tokenizer.pad_token_id}, {})
    return with_hidden_words(examples, len(tokenizer), tokenizer.mask_token_id, tuple(tokenizer.all_special_ids))


def with_hidden_words(
    examples: EncodedExamples, vocabulary: int, mask_id: int = _FIRST_ID, special_ids: tuple[int, ...] = (0,)
) -> MaskedSequences:
    """The same sequences with 15% of their tokens hidden, and labels of these."""
    masking = Masking(0.15, mask_id, vocabulary, special_ids, seed=0)
    return MaskedSequences(examples.features, examples.pad_values, {}, masking=masking)


def with_answers(batch: Batch) -> Batch:
    """The batch with random answers, `start_positions` and `end_positions` `(batch,)`, in place of labels.

    Only the time of a step is of interest, and that does not depend on where the answers are.
    """
    lengths = batch["attention_mask"].sum(1).cpu()
    generator = torch.Generator().manual_seed(0)
    answers = {
        name: (torch.rand(len(lengths), generator=generator) * lengths).long().to(batch["labels"].device)
        for name in ("start_positions", "end_positions")
    }
    return {name: tensor for name, tensor in batch.items() if name != "labels"} | answers


def _sample(rows: list, count: int) -> list:
    return random.Random(0).sample(rows, min(count, len(rows)))
