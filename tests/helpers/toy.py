"""The words and sizes of the toy model and data."""

from __future__ import annotations

import random

#: The words that decide a label.
WORDS = {0: ("bad", "dull", "poor", "sad"), 1: ("good", "fine", "great", "warm")}
FILLERS = ("a", "the", "film", "plot", "is", "and", "very", "story", "with")
#: Of the toy BERT: layers, heads and neurons a layer, hidden size, size of a head.
LAYERS, HEADS, NEURONS, HIDDEN, HEAD_SIZE = 3, 4, 48, 32, 8

#: Parameters that go with one head and with one neuron.
PER_HEAD = HEAD_SIZE * (4 * HIDDEN + 3)
PER_NEURON = 2 * HIDDEN + 1


def sentence(generator: random.Random, label: int) -> str:
    words = generator.choices(FILLERS, k=generator.randint(2, 9)) + generator.choices(WORDS[label], k=2)
    generator.shuffle(words)
    return " ".join(words)
