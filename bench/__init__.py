"""Benchmarks: of ops (`bench/ops`), of whole training steps (`bench/step`), of whole runs (`end_to_end`).

`bench/report` has the tables and plots of what they write, `bench/tune` the tables of choices that ship with the
library, and `gpu` runs all that wants a GPU. What several of these share stands here.
"""
