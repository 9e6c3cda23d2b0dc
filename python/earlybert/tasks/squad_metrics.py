"""Exact match and F1 of answers, as SQuAD's evaluation defines them (arXiv 1606.05250, section 6.1; 1806.03822)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(answer: str) -> str:
    """An answer in lower case, without ASCII's punctuation, without articles, one space between words."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction, normalised, is one of the answers; 0 otherwise."""
    return float(any(normalize(prediction) == normalize(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str], *, empty_matches_empty: bool) -> float:
    """The best F1, over the answers, of the words that prediction and answer share.

    Args:
        prediction: a text.
        answers: at least one.
        empty_matches_empty: whether two texts without a word are alike, as version 2 has it; they score 0 in version 1.
    """
    return max(_f1(normalize(prediction).split(), normalize(a).split(), empty_matches_empty) for a in answers)


def _f1(predicted: list[str], expected: list[str], empty_matches_empty: bool) -> float:
    if not predicted or not expected:
        return float(empty_matches_empty and predicted == expected)
    common = (Counter(predicted) & Counter(expected)).total()
    return 2 * common / (len(predicted) + len(expected))
