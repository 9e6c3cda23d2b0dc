"""Entities and how well they are found, by hand; seqeval's default mode says the same of these."""

from __future__ import annotations

import pytest

from earlybert.tasks.entities import entities, entity_scores, is_entity_tag


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O B-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
        ("B-PER B-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("O I-PER I-PER O", {("PER", 1, 3)}),
        ("B-PER I-LOC I-LOC", {("PER", 0, 1), ("LOC", 1, 3)}),
        ("I-PER O I-PER", {("PER", 0, 1), ("PER", 2, 3)}),
        ("I-PER B-PER I-PER", {("PER", 0, 1), ("PER", 1, 3)}),
        ("B-x-y I-x-y I-x", {("x-y", 0, 2), ("x", 2, 3)}),
        ("B I O I", {("", 0, 2), ("", 3, 4)}),
        ("O O", set()),
        ("", set()),
    ],
)
def test_entities_begin_and_end_as_conlleval_has_it(tags: str, expected: set[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == expected


def test_an_entity_is_found_with_its_type_and_both_ends() -> None:
    right = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG", "I-ORG", "I-ORG"], ["B-LOC", "O"]]
    said = [["B-PER", "I-PER", "O", "B-ORG"], ["O", "B-ORG", "I-ORG", "O"], ["B-LOC", "B-LOC"]]
    # Right: PER 0-2, LOC 3-4; ORG 1-4; LOC 0-1. Said: PER 0-2, ORG 3-4; ORG 1-3; LOC 0-1, LOC 1-2. Found: 2.
    scores = entity_scores(said, right)
    assert scores == pytest.approx({"precision": 2 / 5, "recall": 2 / 4, "f1": 2 * (2 / 5 * 2 / 4) / (2 / 5 + 2 / 4)})
    assert set(entity_scores(right, right).values()) == {1.0}


def test_sentences_are_judged_apart() -> None:
    assert entity_scores([["B-PER"], ["I-PER"]], [["B-PER"], ["B-PER"]])["f1"] == 1.0


def test_nothing_found_or_nothing_there_is_0() -> None:
    nothing, one = [["O", "O"]], [["B-PER", "O"]]
    for said, right in ((nothing, nothing), (nothing, one), (one, nothing)):
        assert entity_scores(said, right) == {"f1": 0.0, "precision": 0.0, "recall": 0.0}


def test_tags_of_entities() -> None:
    assert all(map(is_entity_tag, ("O", "B", "I", "B-PER", "I-x-y")))
    assert not any(map(is_entity_tag, ("NOUN", "S-PER", "O-PER", "Beta", "b-PER", "")))
