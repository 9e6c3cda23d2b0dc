"""How well the tags of words name entities, as CoNLL's shared tasks count them."""

from __future__ import annotations

from collections.abc import Sequence

#: The tag of a word that belongs to no entity.
OUTSIDE = "O"


def is_entity_tag(tag: str) -> bool:
    """Whether it is `O`, or `B` or `I`, perhaps with a type of entity: `B-PER`."""
    return tag == OUTSIDE or tag.split("-", 1)[0] in ("B", "I")


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The entities that a sentence's tags name: type, first word and the one behind the last.

    An entity begins with a `B`, or with an `I` that no word of its type stands before, as conlleval has it, and goes on
    with every `I` of its type. So tags need not be strict.

    Args:
        tags: each as `is_entity_tag` wants it.
    """
    found: list[tuple[str, int, int]] = []
    for word, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if prefix == "I" and found and (found[-1][0], found[-1][2]) == (kind, word):
            found[-1] = (kind, found[-1][1], word + 1)
        elif prefix != OUTSIDE:
            found.append((kind, word, word + 1))
    return set(found)


def entity_scores(said: Sequence[Sequence[str]], right: Sequence[Sequence[str]]) -> dict[str, float]:
    """`f1`, `precision` and `recall` of the entities of all types together; 0 where there is none to divide by.

    An entity is found if its type, its first and its last word are right.

    Args:
        said: the tags of each sentence that are judged.
        right: those that it has.
    """
    pairs = [(entities(own), entities(other)) for own, other in zip(said, right, strict=True)]
    hits = sum(len(own & other) for own, other in pairs)
    named, there = sum(len(own) for own, _ in pairs), sum(len(other) for _, other in pairs)
    return {
        "f1": 2 * hits / max(1, named + there),
        "precision": hits / max(1, named),
        "recall": hits / max(1, there),
    }
