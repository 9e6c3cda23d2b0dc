"""Lengths of real training sequences, so that a benchmark has real batches where the data is absent.

Both histograms count what the tokenizer of BERT's uncased vocabulary gives, [CLS] and [SEP] included:

- `sst2`: all 67,349 sentences of GLUE SST-2's `train.tsv`; 13.3 tokens on average.
- `squad`: question and context of the first 11,877 questions (44 articles) of SQuAD v1.1's training file, the context
  cut so that both have 384 tokens at most; 160.5 tokens on average. Counted in bins of 8 tokens.

Any number is a batch too, in which all sequences have so many tokens.
"""

from __future__ import annotations

import random

# Sentences of 3, 4, 5, ... tokens.
_SST2_SHORTEST = 3
_SST2 = (
    1978, 5322, 6065, 5345, 4749, 4155, 3713, 3267, 2947, 2650, 2413, 2138, 1950, 1777, 1661, 1515, 1373, 1285, 1132,
    1106, 1046, 909, 820, 806, 733, 692, 628, 538, 491, 442, 448, 400, 337, 304, 286, 242, 195, 203, 192, 155, 148, 130,
    89, 82, 85, 73, 55, 42, 50, 40, 36, 19, 21, 22, 15, 8, 6, 3, 2, 5, 5, 1, 2, 2,
)  # fmt: skip

# Pairs of 33 to 40, 41 to 48, ..., 377 to 384 tokens.
_SQUAD_BIN = 8
_SQUAD_SHORTEST = 33
_SQUAD = (
    5, 66, 211, 232, 304, 371, 391, 475, 524, 580, 623, 574, 677, 591, 545, 605, 460, 521, 497, 443, 371, 340, 298, 195,
    188, 218, 203, 161, 184, 156, 96, 79, 76, 88, 75, 57, 56, 39, 38, 39, 19, 25, 18, 163,
)  # fmt: skip

#: Name -> relative frequency of every length in tokens. A bin's count is spread evenly over its lengths.
HISTOGRAMS: dict[str, dict[int, float]] = {
    "sst2": {_SST2_SHORTEST + i: count for i, count in enumerate(_SST2)},
    "squad": {
        _SQUAD_SHORTEST + _SQUAD_BIN * i + j: count / _SQUAD_BIN
        for i, count in enumerate(_SQUAD)
        for j in range(_SQUAD_BIN)
    },
}


def is_known(name: str) -> bool:
    """Whether `draw_lengths` knows a mix of that name."""
    return name in HISTOGRAMS or (name.isdecimal() and int(name) > 0)


def mean_length(name: str) -> float:
    """Tokens of a sequence on average, of a mix that `draw_lengths` knows."""
    histogram = HISTOGRAMS.get(name) or {int(name): 1}
    return sum(length * count for length, count in histogram.items()) / sum(histogram.values())


def draw_lengths(name: str, count: int, seed: int = 0) -> list[int]:
    """Lengths of `count` sequences in tokens, as random batches have them; the same for the same arguments.

    Args:
        name: `"sst2"`, `"squad"`, or a number of tokens that all sequences have.
        count: how many sequences.
        seed: which ones.

    Raises:
        ValueError: there is no such mix.
    """
    if not is_known(name):
        raise ValueError(f"no mix of lengths named {name!r}; known: {', '.join(HISTOGRAMS)}, or a number of tokens")
    if name not in HISTOGRAMS:
        return [int(name)] * count
    lengths, weights = zip(*HISTOGRAMS[name].items(), strict=True)
    return random.Random(seed).choices(lengths, weights, k=count)
