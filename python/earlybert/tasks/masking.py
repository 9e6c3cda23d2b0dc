"""Which tokens a masked language model has to guess (arXiv 1810.04805, section 3.1), drawn anew in every epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: What a token that is to be guessed is shown as: the mask, a random token, itself.
_MASKED, _RANDOM = 0.8, 0.1


@dataclass(frozen=True)
class Masking:
    """How tokens are hidden.

    Attributes:
        probability: share of a sequence's words that are to be guessed.
        mask_id: the id of [MASK].
        vocabulary: ids there are, of which random ones are drawn.
        special_ids: ids that are never hidden.
        seed: of all draws.
    """

    probability: float
    mask_id: int
    vocabulary: int
    special_ids: tuple[int, ...]
    seed: int

    def maskable(self, ids: np.ndarray) -> np.ndarray:
        """Which tokens may be hidden, bool of the shape of `ids`."""
        return ~np.isin(ids, self.special_ids)

    def apply(self, ids: np.ndarray, number: int, words: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Hides tokens of one sequence. The same number draws the same, whatever was drawn before.

        Args:
            ids: int64 `(tokens,)`, at least one of which may be hidden.
            number: which draw this is.
            words: the number of the word that each token belongs to, in rising order, to hide whole words; a token is
                a word where None.

        Returns:
            What is shown, and the labels: ids of what is to be guessed, -100 elsewhere. So many tokens are to be
            guessed as the probability says, rounded, at least one; of whole words at most so many, and at least one
            word.
        """
        generator = np.random.Generator(np.random.Philox(key=[self.seed, number]))
        (places,) = np.nonzero(self.maskable(ids))
        count = max(1, round(self.probability * len(places)))
        if words is None:
            chosen = generator.permutation(places)[:count]
        else:
            own = words[places]
            starts = np.flatnonzero(np.diff(own, prepend=own[0] - 1))
            lengths = np.diff(starts, append=len(own))
            order = generator.permutation(len(starts))
            total = np.cumsum(lengths[order])
            taken = order[: max(1, np.searchsorted(total, count, side="right"))]
            chosen = places[np.isin(np.repeat(np.arange(len(starts)), lengths), taken)]
        labels = np.full(len(ids), -100, np.int64)
        labels[chosen] = ids[chosen]
        draw = generator.random(len(chosen))
        random_ids = generator.integers(self.vocabulary, size=len(chosen))
        shown = ids.copy()
        shown[chosen] = np.select([draw < _MASKED, draw < _MASKED + _RANDOM], [self.mask_id, random_ids], ids[chosen])
        return shown, labels
