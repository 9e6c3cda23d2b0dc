from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from earlybert import FinetuneArguments
from earlybert.tasks import TASKS, Questions
from earlybert.tasks.questions import Answer, Question
from earlybert.tasks.squad_metrics import exact_match, f1, normalize

SQUAD, SQUAD_V2 = TASKS["squad"], TASKS["squad_v2"]
Make = Callable[..., FinetuneArguments]


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
