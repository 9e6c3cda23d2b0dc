"""The rows of the microbenchmarks: which shape, lengths, unit, mode and provider each one measures."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend

import earlybert_kernels as ek
from earlybert_kernels.backends import backends

from .lengths import draw_lengths, mean_length
from .shapes import SHAPES, Shape

#: dense: all units. masked: full tensors, the ticket given as the op's mask. compact: the ticket's tensors alone.
UNITS = ("dense", "masked", "compact")
#: Every ratio is to it: what stock transformers does.
BASELINE = "eager"
#: torch's kernels of attention on a GPU, each alone, where eager runs the one that torch likes best.
SDPA_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
#: torch's attention of packed sequences, as `bench/varlen.py` calls it.
VARLEN = ("varlen", "flash-varlen")
#: What one may have instead of eager and compile: each of torch's kernels of attention.
PEERS = (*SDPA_KERNELS, *VARLEN)
#: The providers that are torch alone; the others are backends of our op.
TORCH_PROVIDERS = (BASELINE, "compile", *PEERS)
#: The batch that is measured: of the first ten, the one whose mean and longest are closest to an average batch's.
_BATCH_SEED = 5
#: Backends that take no tensors of the other device.
_BACKENDS_OF = {
    device: (*(own.name for own in backends().values() if device in own.devices), "reference")
    for device in ("cpu", "cuda")
}


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
        dropout: the rate while the op is timed; None for the subject's own.
    """

    op: str
    shape: str
    lengths: str
    unit: str
    batch_size: int
    dtype: torch.dtype
    device: torch.device
    dropout: float | None = None

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
        provider: one of `TORCH_PROVIDERS`, or a backend of the op.
    """

    problem: Problem
    mode: str
    provider: str

    @property
    def id(self) -> str:
        """Such as `minilm-sst2-dense-full-cpu`."""
        problem = self.problem
        return "-".join((problem.shape, problem.lengths, problem.unit, self.mode, self.provider))


def providers(op: str, device: torch.device, unit: str = "dense") -> list[str]:
    """Eager PyTorch, torch.compile of the same, and the op's backends for tensors on the device.

    For attention of all heads on a GPU, also torch's kernels.
    """
    kernels = PEERS if (op, unit, device.type) == ("attention", "dense", "cuda") else ()
    return [BASELINE, "compile", *kernels, *(b for b in ek.ops.backends(op) if b in _BACKENDS_OF[device.type])]


def make_cases(
    op: str,
    units: Sequence[str],
    *,
    sizes: Sequence[str],
    lengths: Sequence[str],
    modes: Sequence[str],
    batch_size: int,
    tokens: int | None = None,
    dtype: torch.dtype,
    device: torch.device,
    dropout: float | None = None,
) -> list[Case]:
    """All rows of an op; those of one problem stand together.

    With `tokens`, a batch has as many sequences as have so many tokens on average, and not `batch_size`.
    """
    return [
        Case(Problem(op, shape, mix, unit, size, dtype, device, dropout), mode, provider)
        for shape, mix, unit in itertools.product(sizes, lengths, units)
        for size in [batch_size if tokens is None else max(1, round(tokens / mean_length(mix)))]
        for mode, provider in itertools.product(modes, providers(op, device, unit))
    ]
