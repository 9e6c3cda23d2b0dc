"""The order in which training sees its examples."""

from __future__ import annotations

import pytest
import torch

from earlybert.training.data import TrainingOrder


@pytest.mark.parametrize("accumulation", [1, 3])
def test_every_epoch_sees_every_example_once(accumulation: int) -> None:
    order = TrainingOrder(50, batch_size=8, accumulation_steps=accumulation, seed=3)
    steps = order.steps_from(0)
    epochs = [[next(steps) for _ in range(order.steps_per_epoch)] for _ in range(2)]
    flat = [[i for batches in epoch for batch in batches for i in batch] for epoch in epochs]
    assert sorted(flat[0]) == list(range(50))
    assert sorted(flat[1]) == list(range(50, 100))
    assert flat[0] != [number - 50 for number in flat[1]]
    assert all(len(batch) <= 8 for epoch in epochs for batches in epoch for batch in batches)


def test_the_order_is_that_of_seed_and_epoch_alone() -> None:
    first = TrainingOrder(50, batch_size=8, accumulation_steps=1, seed=3)
    torch.manual_seed(99)
    second = TrainingOrder(50, batch_size=4, accumulation_steps=2, seed=3)
    for epoch in range(3):
        assert first.permutation(epoch) == second.permutation(epoch)
    assert first.permutation(0) != TrainingOrder(50, batch_size=8, accumulation_steps=1, seed=4).permutation(0)


def test_the_order_can_be_taken_up_anywhere() -> None:
    order = TrainingOrder(50, batch_size=8, accumulation_steps=2, seed=3)
    steps = order.steps_from(0)
    whole = [next(steps) for _ in range(12)]
    for start in range(12):
        steps = order.steps_from(start)
        assert [next(steps) for _ in range(12 - start)] == whole[start:]
