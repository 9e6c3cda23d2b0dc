"""The size of the toy BERT that the tests of whole runs train."""

LAYERS, HEADS, NEURONS = 3, 4, 48
