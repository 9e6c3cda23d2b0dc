"""The rows of the microbenchmarks: which shape, lengths, unit, mode and provider each one measures."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

import earlybert_kernels as ek

from .lengths import draw_lengths
from .shapes import SHAPES, Shape

#: dense: all units. masked: full tensors, the ticket given as the op's mask. compact: the ticket's tensors alone.
UNITS = ("dense", "masked", "compact")
#: Every ratio is to it: what stock transformers does.
BASELINE = "eager"
#: The providers that are torch alone; the others are backends of our op.
TORCH_PROVIDERS = (BASELINE, "compile")
#: The batch that is measured: of the first ten, the one whose mean and longest are closest to an average batch's.
_BATCH_SEED = 5
#: Backends that take no tensors of the other device.
_BACKENDS_OF = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}


@dataclass(frozen=True)
class Problem:
    """What all providers compute alike.

    Attributes:
        op: name of the op.
        shape: name of a shape.
        lengths: name of a mix of lengths.
        unit: one of `UNITS`.
        batch_size: sequences.
        dtype: of all tensors.
        device: of all tensors.
    """

    op: str
    shape: str
    lengths: str
    unit: str
    batch_size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def sizes(self) -> Shape:
        """The widths of the shape."""
        return SHAPES[self.shape]

    def sequence_lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return draw_lengths(self.lengths, self.batch_size, _BATCH_SEED)


@dataclass(frozen=True)
class Case:
    """One row: a problem, and how and in which direction it is computed.

    Attributes:
        problem: what is computed.
        mode: one of `floors.MODES`.
        provider: `"eager"`, `"compile"` or a backend of the op.
    """

    problem: Problem
    mode: str
    provider: str

    @property
    def id(self) -> str:
        """Such as `minilm-sst2-dense-full-cpu`."""
        problem = self.problem
        return "-".join((problem.shape, problem.lengths, problem.unit, self.mode, self.provider))


def providers(op: str, device: torch.device) -> list[str]:
    """Eager PyTorch, torch.compile of the same, and the op's backends for tensors on the device."""
    return [*TORCH_PROVIDERS, *(b for b in ek.ops.backends(op) if b in _BACKENDS_OF[device.type])]


def make_cases(
    op: str,
    units: Sequence[str],
    *,
    sizes: Sequence[str],
    lengths: Sequence[str],
    modes: Sequence[str],
    batch_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Case]:
    """All rows of an op; those of one problem stand together."""
    return [
        Case(Problem(op, shape, mix, unit, batch_size, dtype, device), mode, provider)
        for shape, mix, unit in itertools.product(sizes, lengths, units)
        for mode, provider in itertools.product(modes, providers(op, device))
    ]
