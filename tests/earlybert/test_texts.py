from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import multiprocess
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from earlybert import PretrainArguments
from earlybert.errors import UsageError
from earlybert.tasks import Source
from earlybert.tasks.documents import Corpus
from earlybert.tasks.masked_lm import MaskedLMTask
from earlybert.tasks.masking import Masking
from earlybert.tasks.tokenizing import _mortal_workers, using_cache
from earlybert.training.batches import NO_LABEL, collate
from earlybert.training.checkpoints import fingerprint
from earlybert.training.interrupt import terminable
from tests.helpers.texts import encoded

Make = Callable[..., PretrainArguments]
CPU = torch.device("cpu")


# Documents


def texts(path: Path, **options: Any) -> list[str]:
    return list(Corpus(**options).read(path).dataset["text"])


def test_documents_are_lines_or_separated_by_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffone two.\r\nthree\u2028four\n \t\n\n  five\n\nsix".encode())
    assert texts(path) == ["one two.", "three\u2028four", "five", "six"]
    assert texts(path, blank_lines=True) == ["one two. three\u2028four", "five", "six"]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("one\n")
    assert texts(path) == ["one"]
    path.write_text("one\ntwo\n")
    assert texts(path) == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "expected a text"), (b" \n\n", "expected a text"), (b"one\n\xff\n", ":2: .*UTF-8")]
)
def test_files_without_text_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        Corpus().load(Source(train_file=path))
    with pytest.raises(FileNotFoundError, match="no such file"):
        Corpus().load(Source(train_file=tmp_path / "none.txt"))
    with pytest.raises(FileNotFoundError, match="a folder"):
        Corpus().load(Source(train_file=tmp_path))


def test_a_corpus_needs_a_source() -> None:
    with pytest.raises(UsageError, match="expected --train-file or --dataset-name"):
        Corpus().load(Source())


def test_the_same_documents_are_held_out_and_never_learnt_from(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"text {number}\n" for number in range(50)))
    first, second = (Corpus().load(Source(train_file=path)) for _ in range(2))
    train, held_out = (set(part.dataset["text"]) for part in (first.train, first.evals[""]))
    assert (len(train), len(held_out)) == (47, 3)
    assert not train & held_out
    assert held_out == set(second.evals[""].dataset["text"])
    named = Corpus(max_documents=7).load(Source(train_file=path, validation_file=path))
    assert (len(named.train), len(named.evals[""])) == (7, 50)
    path.write_text("alone\n")
    with pytest.raises(UsageError, match="single document"):
        Corpus().load(Source(train_file=path))


@pytest.mark.parametrize("streaming", [True, False])
def test_datasets_of_the_hub_are_read(monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    from datasets import Dataset, DatasetDict

    asked = []

    def load(*args: Any, **options: Any) -> Any:
        asked.append((*args, options["streaming"]))
        splits = {"train": [str(n) for n in range(9)], "validation": ["last"]}
        found = {name: Dataset.from_dict({"body": rows, "id": rows}) for name, rows in splits.items()}
        return {n: d.to_iterable_dataset() for n, d in found.items()} if options["streaming"] else DatasetDict(found)

    monkeypatch.setattr("datasets.load_dataset", load)
    corpus = Corpus(dataset_name="some/texts", dataset_config="en", text_column="body", max_documents=4)
    data = replace(corpus, streaming=streaming).load(Source())
    assert asked == [("some/texts", "en", streaming)]
    assert list(data.train.dataset["text"]) == ["0", "1", "2", "3"]
    assert list(data.evals[""].dataset["text"]) == ["last"]
    with pytest.raises(UsageError, match="--text-column: expected a column of some/texts, body, id; found text"):
        replace(corpus, text_column="text").load(Source())


def test_the_hub_being_away_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(UsageError, match=r"some/texts could not be read .*no network.*give --train-file"):
        Corpus(dataset_name="some/texts").load(Source())


# Masks


def masking(probability: float = 0.15, seed: int = 0) -> Masking:
    return Masking(probability, mask_id=4, vocabulary=1000, special_ids=(0, 2, 3, 4), seed=seed)


IDS = np.array([2, *range(10, 138), 3])


def test_tokens_are_hidden_as_bert_hides_them() -> None:
    masks = randoms = kept = total = 0
    places = np.zeros(len(IDS))
    for number in range(2000):
        shown, labels = masking().apply(IDS, number)
        hidden = labels != NO_LABEL
        assert hidden.sum() == 19, "15% of 128"
        assert (labels[hidden] == IDS[hidden]).all()
        assert (shown[~hidden] == IDS[~hidden]).all()
        places += hidden
        total += hidden.sum()
        masks += (shown[hidden] == 4).sum()
        kept += (shown[hidden] == IDS[hidden]).sum()
        randoms += ((shown[hidden] != 4) & (shown[hidden] != IDS[hidden])).sum()
    assert places[0] == places[-1] == 0, "special tokens are shown"
    # Five standard deviations of the counts.
    for count, share in ((masks, 0.8), (randoms, 0.1), (kept, 0.1)):
        assert abs(count / total - share) < 5 * (share * (1 - share) / total) ** 0.5 + 0.001
    expected = 2000 * 19 / 128
    assert abs(places[1:-1] - expected).max() < 5 * expected**0.5


def test_masks_depend_on_seed_and_number_alone() -> None:
    first = masking().apply(IDS, 7)
    np.random.default_rng().random(5)
    again = masking().apply(IDS, 7)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    for other in (masking().apply(IDS, 8), masking(seed=1).apply(IDS, 7)):
        assert (other[1] != first[1]).any()


@pytest.mark.parametrize("tokens", [1, 2, 3, 40])
def test_at_least_one_token_is_hidden(tokens: int) -> None:
    ids = np.array([2, *range(10, 10 + tokens), 3])
    _, labels = masking().apply(ids, 0)
    assert (labels != NO_LABEL).sum() == max(1, round(0.15 * tokens))


def test_whole_words_are_hidden_whole() -> None:
    words = np.array([-1, *np.repeat(np.arange(32), 4), -1])
    for number in range(200):
        _, labels = masking().apply(IDS, number, words)
        hidden = (labels != NO_LABEL)[1:-1].reshape(32, 4)
        assert (hidden.all(1) == hidden.any(1)).all()
        assert hidden.sum() == 16, "four words of four; a fifth would be more than 19 tokens"
    _, labels = masking().apply(IDS[:10], 0, np.array([-1, *[5] * 9]))
    assert (labels != NO_LABEL).sum() == 9, "the only word"


# Sequences


def test_sequences_hold_parts_of_one_document(tiny_bert: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    found = encoded(tiny_bert, "a film is good " * 2, "", "sad", "[UNK] zzz")
    seen = [tokenizer.decode(ids) for ids in found.features["input_ids"]]
    assert seen == ["[CLS] a film is good a film [SEP]", "[CLS] is good [SEP]", "[CLS] sad [SEP]"], (
        "texts without a word that is known teach nothing"
    )


def test_every_epoch_hides_others(tiny_bert: str) -> None:
    found = encoded(tiny_bert, "a film is good " * 20, max_length=128)
    labels = [found[number]["labels"].tolist() for number in range(3)]
    assert len({tuple(each) for each in labels}) == 3, "one sequence, in three epochs"
    held_out = found.as_held_out()
    assert held_out[0]["labels"].tolist() == held_out[1]["labels"].tolist()
    other_seed = replace(found, masking=replace(found.masking, seed=9)).as_held_out()
    assert held_out[0]["labels"].tolist() == other_seed[0]["labels"].tolist()


def test_padded_batches_have_no_label_on_padding(tiny_bert: str) -> None:
    batch = collate(encoded(tiny_bert, "a film is good", "sad"), [0, 1])
    assert batch["labels"].shape == batch["input_ids"].shape == (2, 6)
    assert (batch["labels"][1, 3:] == NO_LABEL).all()
    assert batch["attention_mask"][1].tolist() == [1, 1, 1, 0, 0, 0]


# What is kept on disk


def test_another_text_in_a_file_like_the_one_before_is_read(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("film\n")
    assert texts(path) == ["film"]
    before = path.stat()
    path.write_text("plot\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert texts(path) == ["plot"]


@pytest.mark.parametrize("odd", [None, 3, ["a"]])
def test_columns_without_texts_are_refused(tiny_bert: str, odd: Any) -> None:
    from datasets import Dataset

    from earlybert.tasks.documents import Documents

    documents = Documents(Dataset.from_list([{"text": odd}]))
    with pytest.raises(UsageError, match=r"expected texts, found .* in document 0"):
        MaskedLMTask().encode(AutoTokenizer.from_pretrained(tiny_bert), documents, 8)


def test_documents_without_a_word_are_counted(tiny_bert: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "earlybert"):
        encoded(tiny_bert, "zzz", "good", "yyy xxx")
    assert "left out 2 of 3 documents" in caplog.text


def test_a_torn_cache_is_named(tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    encoded(tiny_bert, "good film")
    (kept,) = (tmp_path / "earlybert-kernels").glob("*.arrow")
    for content in (kept.read_bytes()[:-200], b""):
        kept.write_bytes(content)
        with pytest.raises(UsageError, match=r"earlybert-kernels: what was tokenised before cannot be read .*remove"):
            encoded(tiny_bert, "good film")


def test_workers_end_when_they_are_told_to() -> None:
    def handlers() -> list[Any]:
        """Of a process that begins now."""
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            found = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
            os.write(write, " ".join(getattr(each, "name", "own") for each in found).encode())
            os._exit(0)
        os.waitpid(child, 0)
        return os.read(read, 100).decode().split()

    with terminable():
        before = handlers()
        assert before[1] == "own"  # SIGINT's may be ignored, as it is in a shell's background
        with _mortal_workers():
            assert handlers() == ["SIG_IGN", "SIG_DFL"]
        assert handlers() == before


def test_an_interrupt_while_tokenising_stays_one() -> None:
    def interrupted() -> None:  # as `Dataset.map` is with several processes
        try:
            raise KeyboardInterrupt
        finally:
            raise multiprocess.TimeoutError

    with pytest.raises(KeyboardInterrupt), using_cache():
        interrupted()
    with pytest.raises(multiprocess.TimeoutError), using_cache():
        raise multiprocess.TimeoutError


def test_what_is_hidden_with_is_bound_to_a_run(tiny_bert: str) -> None:
    found = encoded(tiny_bert, "good film")
    other = replace(found, masking=replace(found.masking, vocabulary=99))
    assert fingerprint(found.contents()) != fingerprint(other.contents())
