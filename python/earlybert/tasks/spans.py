"""From scores of starts and ends to the best spans of a text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Span:
    """A stretch of a text that may be an answer.

    Attributes:
        begin, end: characters, the end outside.
        start_logit, end_logit: of its first and its last token.
    """

    begin: int
    end: int
    start_logit: float
    end_logit: float

    @property
    def score(self) -> float:
        """What spans are ranked by."""
        return self.start_logit + self.end_logit


def best_spans(scores: np.ndarray, offsets: np.ndarray, count: int, max_tokens: int) -> list[Span]:
    """The spans of one window with the highest scores, all spans looked at, the best first.

    Args:
        scores: of each token as a start and as an end, float32 `(tokens, 2)`.
        offsets: the characters that each token stands for, `(tokens, 2)`; -1 where it is none of the text's.
        count: how many at most.
        max_tokens: tokens of the longest span.
    """
    (inside,) = np.nonzero(offsets[:, 0] >= 0)
    if not len(inside):
        return []
    start, end = scores[inside].T
    # Row i has the spans that start at token i, one for each length; ends beyond the text are no spans.
    ends = np.concatenate([end, np.full(max_tokens - 1, -np.inf, dtype=end.dtype)])
    pairs = (start[:, None] + np.lib.stride_tricks.sliding_window_view(ends, max_tokens)).ravel()
    count = min(count, len(pairs))
    best = np.argpartition(-pairs, count - 1)[:count]
    best = best[np.lexsort((best, -pairs[best]))]
    first, length = np.divmod(best[np.isfinite(pairs[best])], max_tokens)
    last = first + length
    return [
        Span(int(b), int(e), float(s), float(t))
        for b, e, s, t in zip(offsets[inside[first], 0], offsets[inside[last], 1], start[first], end[last], strict=True)
    ]


def merge(spans: Iterable[Span], count: int) -> list[Span]:
    """The best spans of several windows on one text. A span that is in several of them counts once, with its best."""
    found: dict[tuple[int, int], Span] = {}
    for span in spans:
        known = found.setdefault((span.begin, span.end), span)
        if span.score > known.score:
            found[span.begin, span.end] = span
    return sorted(found.values(), key=lambda span: (-span.score, span.begin, span.end))[:count]
