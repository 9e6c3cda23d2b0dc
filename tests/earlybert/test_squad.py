from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy import FILLERS, WORDS
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, BertTokenizer

from earlybert import FinetuneArguments, compare, draw, finetune, plot, verify
from earlybert.errors import Interrupted, UsageError
from earlybert.programs.run import Run
from earlybert.tasks import TASKS, Questions, Source
from earlybert.tasks.questions import Answer, Question
from earlybert.tasks.spans import best_spans, merge
from earlybert.tasks.squad_metrics import exact_match, f1, normalize

SQUAD, SQUAD_V2 = TASKS["squad"], TASKS["squad_v2"]
Make = Callable[..., FinetuneArguments]


def qa(key: str = "q1", text: str = "Who?", answers: Any = (("Ada", 0),), **more: Any) -> dict[str, Any]:
    return {"id": key, "question": text, "answers": [{"text": t, "answer_start": s} for t, s in answers], **more}


def document(*qas: dict[str, Any], context: str = "Ada met Bob.", version: str = "1.1") -> dict[str, Any]:
    return {"version": version, "data": [{"title": "A", "paragraphs": [{"context": context, "qas": list(qas)}]}]}


def written(folder: Path, content: Any, name: str = "train-v1.1.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


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
    ],
)
def test_a_wrong_file_is_refused_saying_where(tmp_path: Path, content: Any, message: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UsageError, match=message) as error:
        SQUAD.read(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train-v1.1.json"
    path.write_text('{"data": [')
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


# The metrics


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat, a dog!", "cat dog"),
        ("AN-APPLE", "anapple"),
        ("theatre", "theatre"),
        ("U.S.\tof\nA", "us of"),
        ("\u2019tis \u00c9t\u00e9", "\u2019tis \u00e9t\u00e9"),  # only ASCII's punctuation goes
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert normalize(text) == expected


def test_metrics_worked_out_by_hand() -> None:
    assert exact_match("the Cat", ["dog", "cat."]) == 1
    assert exact_match("cats", ["cat"]) == 0
    # big black / the black cat: one word in common, precision 1/2, recall 1/2.
    assert f1("big black", ["the black cat"], empty_matches_empty=False) == pytest.approx(0.5)
    # Words count as often as they are there: precision 2/3, recall 1.
    assert f1("no no no", ["no no"], empty_matches_empty=False) == pytest.approx(0.8)
    assert f1("x", ["y", "x z"], empty_matches_empty=False) == pytest.approx(2 / 3)
    assert f1("the", ["a"], empty_matches_empty=True) == 1
    assert f1("the", ["a"], empty_matches_empty=False) == 0
    assert f1("", ["b"], empty_matches_empty=True) == 0


def test_version_2_tells_questions_with_an_answer_from_others() -> None:
    questions = Questions(
        [
            Question("a", "?", "Ada met Bob.", (Answer("Ada", 0), Answer("the", 0))),
            Question("b", "?", "Ada met Bob.", (Answer("met Bob", 4),)),
            Question("c", "?", "Ada met Bob.", ()),
        ]
    )
    metrics = SQUAD_V2.judge({"a": "ada", "b": "Bob", "c": "Bob"}, questions)
    assert metrics == {
        "exact_match": pytest.approx(1 / 3),
        "f1": pytest.approx((1 + 2 / 3) / 3),
        "HasAns_exact": 0.5,
        "HasAns_f1": pytest.approx((1 + 2 / 3) / 2),
        "NoAns_exact": 0.0,
        "NoAns_f1": 0.0,
    }
    assert SQUAD_V2.judge({"a": "", "b": "", "c": ""}, questions)["NoAns_f1"] == 1


def test_metrics_agree_with_another_library_on_the_whole_development_set(data_dir: Path) -> None:
    torchmetrics = pytest.importorskip("torchmetrics.functional.text")
    questions = SQUAD.read(data_dir / "squad" / "dev-v1.1.json")
    generator = random.Random(0)
    scored = 0
    for question in questions.items:
        answers = [answer.text for answer in question.answers]
        words, rest = generator.choice(answers).split(), question.context.split()
        kinds = (words, words[1:], [*words, *rest[:2]], rest[: generator.randrange(4)])
        said = " ".join(generator.choice(kinds))
        if not normalize(said):
            continue  # the other library has two texts without a word alike, as in version 2
        theirs = torchmetrics.squad(
            {"id": question.id, "prediction_text": said},
            {"id": question.id, "answers": {"text": answers, "answer_start": [0] * len(answers)}},
        )
        ours = {"exact_match": exact_match(said, answers), "f1": f1(said, answers, empty_matches_empty=False)}
        assert ours == pytest.approx({name: value.item() / 100 for name, value in theirs.items()}, rel=1e-6), question
        scored += 1
    assert scored > 8000


# Whole runs


def _toy_squad(folder: Path, words: int | None = None) -> str:
    """Makes SQuAD's files: the answer is the one word that is no filler, in contexts of as many words, or up to 31."""
    length = words
    generator = random.Random(0)
    special = [*WORDS[0], *WORDS[1]]
    for split, count in (("train", 96), ("dev", 40)):
        paragraphs = []
        for number in range(count):
            words = generator.choices(FILLERS, k=generator.randint(3, 30) if length is None else length - 1)
            place = generator.randint(0, len(words))
            words.insert(place, generator.choice(special))
            start = len(" ".join([*words[:place], ""]))
            answer = (words[place], start)
            paragraphs.append({"context": " ".join(words), "qas": [qa(f"{split}{number}", "the film", [answer])]})
        written(folder, {"version": "1.1", "data": [{"title": "T", "paragraphs": paragraphs}]}, f"{split}-v1.1.json")
    return str(folder)


@pytest.fixture(scope="module")
def toy_squad(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _toy_squad(tmp_path_factory.mktemp("toy-squad"))


@pytest.fixture
def squad_arguments(arguments: Make, toy_squad: str) -> Make:
    def make(**changes: Any) -> FinetuneArguments:
        return arguments(**{"task": "squad", "data_dir": toy_squad, "max_length": 24, "doc_stride": 6, **changes})

    return make


@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_a_whole_run_on_questions(squad_arguments: Make, tmp_path: Path, kernels: str) -> None:
    args = squad_arguments(kernels=kernels, max_steps=60)
    metrics = finetune(args)
    assert metrics["main_metric"] == "f1"
    assert metrics["eval"]["exact_match"] >= 0.8, "one word is no filler"
    assert metrics["examples"] == {"train": 96, "eval": {"dev": 40}}
    out = Path(args.output_dir)
    predictions = json.loads((out / "predictions.json").read_text())
    assert SQUAD.judge(predictions, SQUAD.load(Source(Path(args.data_dir))).evals[""]) == metrics["eval"]
    assert "predictions.json" in (out / "SHA256SUMS").read_text()
    model = AutoModelForQuestionAnswering.from_pretrained(out / "model")
    parameters = metrics["parameters"]
    assert sum(p.numel() for p in model.parameters()) == parameters["trained"] < parameters["dense"]
    assert all(finding.holds for finding in verify(str(out)))
    assert len(plot(str(out))) == 2
    ticket = draw(*_gates(out), neuron_ratio=0.5)
    assert sum(map(len, ticket.neurons)) < sum(metrics["ticket"]["neurons"])

    further = {"method": "dense", "max_steps": 1, "learning_rate": 1e-9}
    again = finetune(replace(args, output_dir=str(tmp_path / "again"), model=str(out / "model"), **further))
    assert again["eval"]["f1"] == pytest.approx(metrics["eval"]["f1"], abs=0.03), "the head is the checkpoint's"


def _gates(folder: Path) -> Any:
    from earlybert.search.drawing import read_gates

    return read_gates(folder)


def test_kernels_and_stock_learn_the_same(squad_arguments: Make, tmp_path: Path) -> None:
    # All of one length: the stock head lets padding take part in the softmax.
    data = _toy_squad(tmp_path, words=12)
    losses = []
    for kernels in ("auto", "off"):
        args = squad_arguments(kernels=kernels, method="dense", data_dir=data, output_dir=str(tmp_path / kernels))
        losses.append(finetune(replace(args, model=_without_dropout(args.model, tmp_path)))["train_log"][-1]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def _without_dropout(model: str, folder: Path) -> str:
    import shutil

    copy = folder / "no-dropout"
    shutil.copytree(model, copy, dirs_exist_ok=True)
    config = json.loads((copy / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (copy / "config.json").write_text(json.dumps(config))
    return str(copy)


def test_a_resumed_run_on_questions_is_the_uninterrupted_one(
    squad_arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = squad_arguments(output_dir=str(tmp_path / "whole"))
    finetune(whole)
    args = squad_arguments(output_dir=str(tmp_path / "stopped"))
    listening = Run._train

    def stop(run: Run, *arguments: Any) -> Any:
        run.interrupt.made = True
        return listening(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_train", stop)
        with pytest.raises(Interrupted):
            finetune(args)
    finetune(replace(args, resume=True))
    for name in ("predictions.json", "nbest_predictions.json", "ticket.json", "model/model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()


def test_methods_are_compared_on_questions(squad_arguments: Make) -> None:
    args = squad_arguments(max_steps=4, search_steps=4)
    comparison = compare(args, [("dense", "off"), ("earlybert", "auto"), ("random", "auto")], [1])
    assert comparison["metric"] == "f1"
    assert [row["method"] for row in comparison["rows"]] == ["dense", "earlybert", "random"]


def test_flags_of_questions_mean_nothing_to_sentences(arguments: Make, squad_arguments: Make) -> None:
    with pytest.raises(UsageError, match="--doc-stride says nothing to task sst2"):
        finetune(arguments(doc_stride=3))
    with pytest.raises(UsageError, match="--null-score-diff-threshold: every question of task squad has an answer"):
        finetune(squad_arguments(null_score_diff_threshold=1.0))


def test_the_usual_length_is_the_tasks(squad_arguments: Make) -> None:
    with pytest.raises(UsageError, match=r"--max-length: expected at most 32, .* found 384"):
        finetune(squad_arguments(max_length=None))
    assert asdict(squad_arguments(max_length=None).resolved(SQUAD.max_length))["max_length"] == 384


@pytest.mark.parametrize("packed", [True, False])
def test_scores_are_given_question_by_question(letters: Any, packed: bool) -> None:
    from types import SimpleNamespace

    lengths = [2, 3]
    flat = torch.arange(5.0)
    starts = flat[None] if packed else torch.tensor([[0.0, 1.0, -9.0], [2.0, 3.0, 4.0]])
    outputs = SQUAD.outputs(lambda: SimpleNamespace(start_logits=starts, end_logits=starts + 10), {}, lengths)
    assert [each.tolist() for each in outputs] == [[[0, 10], [1, 11]], [[2, 12], [3, 13], [4, 14]]]
