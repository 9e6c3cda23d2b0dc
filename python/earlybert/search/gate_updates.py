"""Training the gates beside an optimizer that knows nothing of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import earlybert_kernels as ek

from .. import processes


class GateUpdates:
    """Takes the gates' gradients as they are made, and makes Adam's steps of them with an L1 penalty.

    A gate has no gradient outside of `step`, so that whoever clips gradients clips those of the weights, and the
    penalty is neither in the loss nor multiplied by what scales it. Of several processes each sums its own, and the
    mean of the sums is what all of them step by: DistributedDataParallel need not know of the gates.

    Attributes:
        optimizer: `ek.AdamW` of the gates.
    """

    def __init__(self, gates: Sequence[nn.Parameter], *, learning_rate: float, l1: float) -> None:
        """
        Args:
            gates: float32, of any shapes; they need gradients from now on.
            learning_rate: of all steps.
            l1: lambda of the penalty `lambda * sum|c|`.
        """
        self._gates = list(gates)
        self._sums: dict[Tensor, Tensor] = {}
        self._l1 = l1
        self.optimizer = ek.AdamW(self._gates, lr=learning_rate, weight_decay=0.0, l1=l1)
        self._hooks = [gate.requires_grad_(True).register_post_accumulate_grad_hook(self._take) for gate in self._gates]

    def step(self, scale: float = 1.0, before_update: Callable[[], None] = lambda: None) -> None:
        """Changes the gates by the gradients since the step before.

        Args:
            scale: what the loss was multiplied by.
            before_update: called when the gates have those gradients.
        """
        processes.average(self._sums[gate] for gate in self._gates if gate in self._sums)
        for gate, gradient in self._sums.items():
            gate.grad = gradient if scale == 1.0 else gradient / scale
        self._sums.clear()
        before_update()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def skip(self) -> None:
        """Forgets the gradients since the step before."""
        self._sums.clear()

    def penalty(self) -> float:
        """`lambda * sum|c|` now."""
        sums = torch.stack([gate.detach().abs().sum() for gate in self._gates])  # waits for a GPU once
        return self._l1 * sum(sums.tolist())

    def close(self) -> None:
        """Lets the gates go."""
        for hook in self._hooks:
            hook.remove()
        self._sums.clear()

    def _take(self, gate: Tensor) -> None:
        if gate.grad is not None:
            self._sums[gate] = self._sums[gate] + gate.grad if gate in self._sums else gate.grad
            gate.grad = None
