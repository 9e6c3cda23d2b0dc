"""An op as a benchmark sees it: the same numbers packed for our op, padded for stock PyTorch, exact for the check."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from earlybert_kernels.nn import Packing

from ..shapes import DROPOUT
from .cases import UNITS, Problem
from .roofline import WorkByMode

Tensors = dict[str, Tensor]


class Subject(ABC):
    """One op on one problem's inputs. Each benchmark file has its own.

    Attributes:
        op: name of the op in `earlybert_kernels.ops`.
        units: the units that pruning the op knows.
        dropout: the op's rate while it is timed, if the problem says none.
        kept_share: of the units that pruning knows, how many are computed.
        lengths: tokens of each sequence.
        packing: where the sequences are in the packed and in the padded batch.
        tokens: what the op reads per token, `(T, ...)` packed.
        weights: the other tensors that get a gradient.
    """

    op: ClassVar[str]
    units: ClassVar[tuple[str, ...]] = UNITS
    dropout: float = DROPOUT

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        if problem.dropout is not None:
            self.dropout = problem.dropout
        self.lengths = problem.sequence_lengths()
        longest = max(self.lengths)
        mask = torch.arange(longest) < torch.tensor(self.lengths)[:, None]
        self.padding_mask = mask.to(problem.device)
        self.packing = Packing.from_mask(self.padding_mask, len(self.lengths), longest, problem.device)
        self._generator = torch.Generator().manual_seed(0)
        self.kept_share = 1.0
        self.tokens: Tensors = {}
        self.weights: Tensors = {}

    @property
    def num_tokens(self) -> int:
        """T, real tokens of the batch."""
        return sum(self.lengths)

    def random(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normally distributed numbers; the same on every device."""
        return (torch.randn(*shape, generator=self._generator) * scale).to(self.problem.device, self.problem.dtype)

    @abstractmethod
    def packed(self, inputs: Tensors, dropout_p: float, backend: str) -> Tensor:
        """Our op on packed inputs, `tokens | weights` in any dtype; the output is `(T, ...)` or a scalar."""

    @abstractmethod
    def padded(self, inputs: Tensors, dropout_p: float) -> Tensor:
        """What stock transformers does, on tokens `(B, S, ...)`; the output is `(B, S, ...)` or a scalar."""

    @abstractmethod
    def work(self) -> WorkByMode:
        """The least work, by mode."""
