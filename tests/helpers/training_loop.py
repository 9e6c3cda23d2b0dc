"""A short loop of training."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import earlybert_kernels as ek
from earlybert.training.data import EncodedExamples, TrainingOrder
from earlybert.training.loop import StageSettings, TrainingLoop


def make_loop(model: nn.Module, examples: EncodedExamples, **changes: Any) -> TrainingLoop:
    """Three steps; `changes` are of the settings and the order."""
    order = {"batch_size": 8, "accumulation_steps": 1, "seed": 1}
    order |= {name: changes.pop(name) for name in list(changes) if name in order}
    settings = {
        "name": "test",
        "max_steps": 3,
        "learning_rate": 1e-3,
        "schedule": "constant",
        "gate_learning_rate": 1e-2,
        "gate_l1": 1e-2,
    }
    gates = [*ek.head_gates(model), *ek.neuron_gates(model)]
    return TrainingLoop(
        model,
        examples,
        TrainingOrder(len(examples), **order),
        StageSettings(**{**settings, **changes}),
        torch.device("cpu"),
        gates=gates,
    )
