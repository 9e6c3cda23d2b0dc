from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertTokenizer

from earlybert import FinetuneArguments
from earlybert.errors import UsageError
from earlybert.tasks import TASKS, Questions, Source
from earlybert.tasks.questions import Answer, Question
from earlybert.tasks.spans import best_spans, merge
from earlybert.training.checkpoints import fingerprint
from tests.helpers.squad import document, qa, written

SQUAD, SQUAD_V2 = TASKS["squad"], TASKS["squad_v2"]
Make = Callable[..., FinetuneArguments]


# Reading files


def test_reads_questions_with_their_answers(tmp_path: Path) -> None:
    path = written(tmp_path, document(qa("a"), qa("b", "Whom?", [("Bob", 8), ("met Bob", 4)])))
    assert SQUAD.read(path).items == [
        Question("a", "Who?", "Ada met Bob.", (Answer("Ada", 0),)),
        Question("b", "Whom?", "Ada met Bob.", (Answer("Bob", 8), Answer("met Bob", 4))),
    ]


def test_a_question_without_answers_has_no_plausible_ones(tmp_path: Path) -> None:
    plausible = [{"text": "Bob", "answer_start": 8}]
    impossible = qa("b", answers=(), is_impossible=True, plausible_answers=plausible)
    path = written(tmp_path, document(qa("a"), impossible, version="v2.0"))
    assert [len(question.answers) for question in SQUAD_V2.read(path).items] == [1, 0]
    with pytest.raises(UsageError, match=r"found none to 'b'.*squad_v2"):
        SQUAD.read(path)


def test_questions_to_be_answered_need_no_answers(tmp_path: Path) -> None:
    path = written(tmp_path, document({"id": "a", "question": "Who?"}, qa("b", answers=[("Eve", 99)])))
    for task in (SQUAD, SQUAD_V2):
        assert task.read_file(path, labelled=False).items == [
            Question("a", "Who?", "Ada met Bob.", ()),
            Question("b", "Who?", "Ada met Bob.", ()),
        ]
    with pytest.raises(UsageError, match=r"qas\[0\].answers, found none"):
        SQUAD.read_file(path, labelled=True)


def test_a_file_of_version_1_is_none_of_version_2(tmp_path: Path) -> None:
    written(tmp_path, document(qa("a")))
    written(tmp_path, document(qa("a")), "dev-v1.1.json")
    with pytest.raises(UsageError, match=r"every question has an answer.*--task squad"):
        SQUAD_V2.load(Source(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "with a list at data, found none"),
        ({"data": {}}, "with a list at data, found dict"),
        ({"data": [1]}, r"data\[0\]: expected an object, found int"),
        ({"data": [{}]}, r"with a list at data\[0\].paragraphs, found none"),
        (document({"id": "a", "question": "b"}), r"data\[0\].paragraphs\[0\].qas\[0\].answers, found none"),
        (document(qa(text=3)), r"qas\[0\].question: expected a text, found int"),
        (document(qa(text="\ud800")), "half of a surrogate pair"),
        (document(qa(answers=[("Ada", "0")])), r"answers\[0\].answer_start: expected a number, found '0'"),
        (document(qa(answers=[("Ada", True)])), "expected a number, found True"),
        (document(qa(is_impossible="no")), r"qas\[0\].is_impossible: expected true or false, found 'no'"),
        (document(), "expected at least one question, found none"),
        (document(qa("a"), qa("a")), "expected ids that differ, found 'a' twice"),
        (document(qa(answers=[("Ada", 4)])), "1 of 1 answers are not in their contexts"),
        (document(qa(answers=[("Ada", -3)])), "1 of 1 answers are not in their contexts"),
        (document(qa(answers=[("", 10**30)])), "1 of 1 answers are not in their contexts"),
        (document(qa(answers=[(" ", 3)])), "1 of 1 answers are not in their contexts"),
    ],
)
def test_a_wrong_file_is_refused_saying_where(tmp_path: Path, content: Any, message: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UsageError, match=message) as error:
        SQUAD.read(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", ['{"data": [', "[" * 100_000])
def test_a_file_that_is_not_json_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "train-v1.1.json"
    path.write_text(content)
    with pytest.raises(UsageError, match="expected JSON"):
        SQUAD.read(path)


def test_few_misplaced_answers_are_left_out_with_a_warning(
    tmp_path: Path, tiny_bert: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = [qa(str(i), answers=[("film", 4)]) for i in range(99)]
    path = written(tmp_path, document(*good, qa("wrong", answers=[("film", 5)]), context="the film"))
    with caplog.at_level(logging.WARNING, "earlybert"):
        questions = SQUAD.read(path)
    assert "left out 1 of 100 answers" in caplog.text
    encoded = SQUAD.encode(AutoTokenizer.from_pretrained(tiny_bert), questions, 16)
    starts = encoded.targets["start_positions"].tolist()
    assert starts[-1] == 0
    assert set(starts[:-1]) == {encoded.targets["end_positions"][0].item()} != {0}


def test_files_are_found_by_their_version_or_named(tmp_path: Path) -> None:
    v1 = document(qa("one"))
    v2 = document(qa("two"), qa("none", answers=(), is_impossible=True), version="v2.0")
    for split in ("train", "dev"):
        written(tmp_path, v1, f"{split}-v1.1.json")
        written(tmp_path, v2, f"{split}-v2.0.json")
    assert [q.id for q in SQUAD.load(Source(tmp_path)).train.items] == ["one"]
    assert [q.id for q in SQUAD_V2.load(Source(tmp_path)).evals[""].items] == ["two", "none"]
    named = Source(train_file=tmp_path / "dev-v1.1.json", validation_file=tmp_path / "train-v1.1.json")
    assert len(SQUAD.load(named).train) == 1
    with pytest.raises(UsageError, match="expected both or neither"):
        SQUAD.load(Source(train_file=tmp_path / "train-v1.1.json"))
    with pytest.raises(UsageError, match="leave out"):
        SQUAD.load(replace(named, data_dir=tmp_path))
    empty = tmp_path / "empty"
    empty.mkdir()
    written(tmp_path, v1, "train-v1.2.json")
    with pytest.raises(UsageError, match=r"several files: train-v1.1.json, train-v1.2.json"):
        SQUAD.load(Source(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no file train-\*.json; task squad needs train-v1.1.json"):
        SQUAD.load(Source(empty))


def test_the_hub_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {
            "id": "a", "title": "A", "context": "Ada met Bob.", "question": "Who?",
            "answers": {"text": ["Ada", "Ada met"], "answer_start": [0, 0]},
        },
        {
            "id": "b", "title": "A", "context": "Ada met Bob.", "question": "Why?",
            "answers": {"text": [], "answer_start": []},
        },
    ]  # fmt: skip
    asked = []

    def load(name: str) -> dict[str, Any]:
        asked.append(name)
        return {"train": rows, "validation": rows[:1]}

    monkeypatch.setattr("datasets.load_dataset", load)
    data = SQUAD_V2.load(Source())
    assert asked == ["rajpurkar/squad_v2"]
    first = Question("a", "Who?", "Ada met Bob.", (Answer("Ada", 0), Answer("Ada met", 0)))
    assert data.train.items == [first, Question("b", "Why?", "Ada met Bob.", ())]
    assert data.evals[""].items == [first]
    with pytest.raises(UsageError, match="rajpurkar/squad, split train: .*found none to 'b'"):
        SQUAD.load(Source())


def test_the_hub_being_away_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(
        UsageError, match=r"rajpurkar/squad\) could not be read .*no network.*train-v1.1.json and dev-v1.1.json"
    ):
        SQUAD.load(Source())


# Windows


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer whose tokens are single letters, so that places can be counted."""
    folder = tmp_path_factory.mktemp("letters")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz0123456789."]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def windows(tokenizer: Any, context: str, *answers: tuple[str, int], max_length: int = 12, **options: Any) -> Any:
    question = Question("q", "a b", context, tuple(Answer(*answer) for answer in answers))
    return replace(SQUAD, **options).encode(tokenizer, Questions([question]), max_length)


def answered(encoded: Any, context: str) -> list[str | None]:
    """What each window's targets point at; None at [CLS]."""
    found = []
    targets = (encoded.targets[name].tolist() for name in ("start_positions", "end_positions"))
    for start, end, offsets in zip(*targets, encoded.offsets, strict=True):
        assert (start == 0) == (end == 0)
        found.append(context[offsets[start][0] : offsets[end][1]] if start else None)
    return found


def test_a_long_context_is_cut_into_windows_that_overlap(letters: Any) -> None:
    context = " ".join("cdefghijklmnop")
    encoded = windows(letters, context, ("h i", context.index("h")), doc_stride=3)
    # Seven tokens of context each: [CLS] a b [SEP] c ... i [SEP].
    seen = [letters.decode(ids) for ids in encoded.features["input_ids"]]
    assert [text.split("[SEP]")[1].strip() for text in seen] == ["c d e f g h i", "g h i j k l m", "k l m n o p"]
    assert answered(encoded, context) == ["h i", "h i", None]
    assert encoded.question_of.tolist() == [0, 0, 0]
    assert [ids.tolist() for ids in encoded.features["token_type_ids"]] == [[0] * 4 + [1] * 8] * 2 + [[0] * 4 + [1] * 7]


def test_an_answer_that_a_window_cuts_is_none_of_its(letters: Any) -> None:
    context = " ".join("cdefghijklmnop")
    encoded = windows(letters, context, ("i j", context.index("i")), doc_stride=1)
    assert answered(encoded, context) == [None, "i j", None]


def test_the_first_of_several_answers_that_a_window_holds_is_its(letters: Any) -> None:
    context = " ".join("cdefghijklmnop")
    answers = [(letter, context.index(letter)) for letter in "pc"]
    assert answered(windows(letters, context, *answers, doc_stride=3), context) == ["c", None, "p"]


@pytest.mark.parametrize(
    ("context", "answer", "expected"),
    [
        ("c   d \t e\n\nf", "d \t e", "d \t e"),
        ("c d e", " d ", "d"),
        ("c \u00e9 d", "\u00e9", "\u00e9"),  # é, whose accent the tokenizer drops
        ("c e\u0301 d", "e\u0301", "e"),  # é as a letter and a combining accent, which is no token
        ("c\u200bd e", "d", "c\u200bd"),  # a character that the tokenizer drops, which makes one word of two
        ("c d.e", "d", "d"),
        ("\U0001f600 c d", "d", "d"),
        ("c\u00a0d\u3000e", "d\u3000e", "d\u3000e"),
    ],
)
def test_places_are_counted_in_characters(letters: Any, context: str, answer: str, expected: str) -> None:
    start = context.index(answer)
    assert answered(windows(letters, context, (answer, start)), context) == [expected]


def test_long_questions_are_cut_and_contexts_may_be_empty(letters: Any) -> None:
    questions = Questions([Question("q", "a b c d e f g h", "c d", (Answer("d", 2),)), Question("r", "a", " ", ())])
    encoded = SQUAD_V2.encode(letters, questions, 16)
    assert letters.decode(encoded.features["input_ids"][0]) == "[CLS] a b c d [SEP] c d [SEP]"
    assert encoded.targets["start_positions"].tolist() == [7, 0]
    judged = SQUAD_V2.score([np.zeros((n, 2), np.float32) for n in encoded.lengths()], encoded)
    assert judged.files["predictions.json"]["r"] == ""
    assert judged.files["null_odds.json"]["r"] > 1e9


def test_windows_that_would_not_move_are_refused(letters: Any) -> None:
    with pytest.raises(UsageError, match=r"--doc-stride.*have 6 for the context.*found 6"):
        windows(letters, "c d", ("c", 0), doc_stride=6)


def test_windows_too_short_for_a_question_and_its_context_are_refused(letters: Any) -> None:
    with pytest.raises(UsageError, match="--max-length: 4 tokens leave no room"):
        windows(letters, "c d", ("c", 0), max_length=4)


def test_the_answers_that_are_judged_by_are_bound_to_a_run(letters: Any) -> None:
    one, two = (windows(letters, "c d", ("c", 0), *more) for more in ((), (("d", 2),)))
    assert one.features["input_ids"][0].equal(two.features["input_ids"][0])
    assert fingerprint(one.contents()) != fingerprint(two.contents())


def test_what_was_tokenised_is_found_again(letters: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from earlybert.tasks import questions

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    first = windows(letters, "c d e", ("d", 2))
    letters("a b", truncation=True, max_length=4, padding="max_length")  # leaves its options in the tokenizer
    monkeypatch.setattr(questions, "_windows", None)
    again = windows(letters, "c d e", ("d", 2))
    assert again.features["input_ids"][0].tolist() == first.features["input_ids"][0].tolist()
    with pytest.raises(TypeError):
        windows(letters, "c d e f", ("d", 2))


# Answers


def plain_spans(scores: np.ndarray, offsets: np.ndarray, count: int, max_tokens: int) -> list[tuple[float, int, int]]:
    """The definition, span by span."""
    inside = [token for token in range(len(scores)) if offsets[token][0] >= 0]
    spans = [
        (scores[i, 0] + scores[j, 1], offsets[i][0], offsets[j][1])
        for i in inside
        for j in inside
        if i <= j < i + max_tokens
    ]
    return sorted(spans, key=lambda span: -span[0])[:count]


@pytest.mark.parametrize("seed", range(8))
def test_the_best_spans_are_those_of_the_definition(seed: int) -> None:
    generator = np.random.default_rng(seed)
    tokens = int(generator.integers(1, 40))
    scores = generator.normal(size=(tokens, 2)).astype(np.float32)
    offsets = np.stack([np.arange(tokens) * 3, np.arange(tokens) * 3 + 2], axis=1)
    question = int(generator.integers(0, tokens))
    offsets[:question] = offsets[tokens - 1 :] = -1
    count, longest = int(generator.integers(1, 25)), int(generator.integers(1, 12))
    found = best_spans(scores, offsets, count, longest)
    assert [(np.float32(s.start_logit) + np.float32(s.end_logit), s.begin, s.end) for s in found] == plain_spans(
        scores, offsets, count, longest
    )


def test_a_span_of_two_windows_counts_once_with_its_best() -> None:
    offsets = np.array([[0, 1], [2, 3]])
    low = best_spans(np.array([[1, 0], [0, 1]], np.float32), offsets, 20, 1)
    high = best_spans(np.array([[5, 5], [-9, -9]], np.float32), offsets, 20, 1)
    merged = merge([*low, *high], 20)
    assert [(span.begin, span.score) for span in merged] == [(0, 10.0), (2, 1.0)]
    assert len(merge([*low, *high], 1)) == 1


def scores_of(encoded: Any, **places: tuple[int, int, float]) -> list[np.ndarray]:
    """Zeros, with the start and end of each question's best span raised."""
    outputs = [np.zeros((n, 2), np.float32) for n in encoded.lengths()]
    for key, (start, end, score) in places.items():
        (window,) = (w for w, q in enumerate(encoded.question_of) if encoded.questions.items[q].id == key)
        outputs[window][start, 0] += score
        outputs[window][end, 1] += score
    return outputs


def test_predictions_are_written_as_the_official_files_are(letters: Any) -> None:
    questions = Questions([Question("q", "a", "c d e", (Answer("d e", 2),))])
    encoded = SQUAD.encode(letters, questions, 16)
    judged = SQUAD.score(scores_of(encoded, q=(4, 5, 3.0)), encoded)
    assert judged.metrics == {"exact_match": 1.0, "f1": 1.0}
    assert judged.files["predictions.json"] == {"q": "d e"}
    best, *others = judged.files["nbest_predictions.json"]["q"]
    assert {name: best[name] for name in ("text", "start_logit", "end_logit")} == {
        "text": "d e",
        "start_logit": 3.0,
        "end_logit": 3.0,
    }
    assert len(others) == 5
    assert sum(entry["probability"] for entry in (best, *others)) == pytest.approx(1)
    assert set(judged.files) == {"predictions.json", "nbest_predictions.json"}


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, ""), (1.0, ""), (2.5, "d")])
def test_version_2_may_give_no_answer(letters: Any, threshold: float, expected: str) -> None:
    task = SQUAD_V2.with_options(null_score_diff_threshold=threshold)
    encoded = task.encode(letters, Questions([Question("q", "a", "c d", ())]), 16)
    outputs = scores_of(encoded, q=(4, 4, 1.0))
    outputs[0][0] = 2.0  # [CLS]: 4 in all, and the best answer has 2
    judged = task.score(outputs, encoded)
    assert judged.files["predictions.json"] == {"q": expected}
    assert judged.files["null_odds.json"] == {"q": 2.0}
    assert [entry["text"] for entry in judged.files["nbest_predictions.json"]["q"]][:2] == ["", "d"]
    assert judged.metrics["NoAns_exact"] == float(not expected)


def test_the_least_null_score_of_all_windows_counts(letters: Any) -> None:
    context = " ".join("cdefghijklmnop")
    encoded = SQUAD_V2.encode(letters, Questions([Question("q", "a b", context, ())]), 12)
    outputs = [np.zeros((n, 2), np.float32) for n in encoded.lengths()]
    for null, each in zip((5.0, -1.0, 7.0), outputs, strict=False):
        each[0] = null
    assert SQUAD_V2.score(outputs, encoded).files["null_odds.json"] == {"q": -2.0}


def test_outputs_that_are_not_finite_are_refused(letters: Any) -> None:
    encoded = windows(letters, "c d", ("c", 0))
    with pytest.raises(FloatingPointError, match="not finite"):
        SQUAD.score([np.full((n, 2), np.nan, np.float32) for n in encoded.lengths()], encoded)


@pytest.mark.parametrize("packed", [True, False])
def test_scores_are_given_question_by_question(letters: Any, packed: bool) -> None:
    from types import SimpleNamespace

    lengths = [2, 3]
    flat = torch.arange(5.0)
    starts = flat[None] if packed else torch.tensor([[0.0, 1.0, -9.0], [2.0, 3.0, 4.0]])
    outputs = SQUAD.outputs(lambda: SimpleNamespace(start_logits=starts, end_logits=starts + 10), {}, lengths)
    assert [each.tolist() for each in outputs] == [[[0, 10], [1, 11]], [[2, 12], [3, 13], [4, 14]]]
