"""How long a pruned model's forward takes next to that of a stock model of the dense shapes."""

from __future__ import annotations

import copy
import statistics
from dataclasses import dataclass

import torch
from torch.utils.benchmark import Timer
from transformers import PreTrainedModel

import earlybert_kernels as ek
from earlybert_kernels.models import family_of_type

from ..environment import describe_machine

_BATCH, _LENGTH = 8, 128
_ROUNDS = 7


@dataclass(frozen=True)
class ForwardTime:
    """A model's forward next to stock's, in float32: medians over rounds in which all run right after each other.

    Attributes:
        stock_ms: milliseconds of the stock model of the dense shapes.
        loaded: the pruned model's time as transformers loads it, of the stock model's in the same round.
        converted: the same after `ek.convert`.
        batch: sequences at once; random tokens, no padding.
        length: tokens a sequence.
        rounds: how many were measured, after one that was not.
        machine: as `environment.describe_machine` says it.
    """

    stock_ms: float
    loaded: float
    converted: float
    batch: int
    length: int
    rounds: int
    machine: dict[str, str | int]


def time_forward(model: PreTrainedModel, device: torch.device) -> ForwardTime:
    """Measures a model, in seconds to a minute; it stays as it is, but goes to the device.

    Args:
        model: with the head that it has, in float32; not converted.
        device: where.
    """
    model.to(device).eval()  # type: ignore[arg-type]  # as transformers has typed it
    models = (ek.to_stock(model), model, ek.convert(copy.deepcopy(model)))
    length = min(_LENGTH, family_of_type(model.config.model_type).longest(model.config))
    ids = torch.randint(model.config.vocab_size, (_BATCH, length), device=device)
    timers = [
        Timer("model(ids)", globals={"model": each, "ids": ids}, num_threads=torch.get_num_threads())
        for each in models
    ]  # fmt: skip
    with torch.inference_mode():
        rounds = [[timer.timeit(1).mean for timer in timers] for _ in range(1 + _ROUNDS)][1:]
    return ForwardTime(
        stock_ms=1000 * statistics.median(stock for stock, _, _ in rounds),
        loaded=statistics.median(loaded / stock for stock, loaded, _ in rounds),
        converted=statistics.median(converted / stock for stock, _, converted in rounds),
        batch=_BATCH,
        length=length,
        rounds=_ROUNDS,
        machine=describe_machine(device),
    )
