"""One way to compute a subject: eager PyTorch, torch.compile, or a backend of our op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .cases import BASELINE, TORCH_PROVIDERS
from .floors import MODES
from .subject import Subject, Tensors


class Provider:
    """Inputs of its own, in the layout that it takes, and what is done with them.

    Args:
        subject: what is computed.
        name: `"eager"`, `"compile"`, or a backend of the op.
        dtype: of the tensors; default the problem's.
    """

    def __init__(self, subject: Subject, name: str, dtype: torch.dtype | None = None) -> None:
        self._subject = subject
        self._is_padded = name in TORCH_PROVIDERS
        if name == "compile":
            # fullgraph also makes reaching the limit of recompilations an error, where eager would be run instead.
            self._forward = torch.compile(subject.padded, dynamic=False, fullgraph=True)
        elif name == BASELINE:
            self._forward = subject.padded
        else:
            self._forward = lambda inputs, dropout_p: subject.packed(inputs, dropout_p, name)
        inputs = {key: self._from_packed(tensor) for key, tensor in subject.tokens.items()} | subject.weights
        dtype = dtype or subject.problem.dtype
        self._inputs = {key: tensor.to(dtype, copy=True).requires_grad_() for key, tensor in inputs.items()}
        self._grad_out: Tensor | None = None

    def prepare(self, mode: str, dropout_p: float) -> Callable[[], Any]:
        """What is to be timed: forward with all that backward needs, backward alone, or both.

        Backward's forward pass is run here. Gradients are returned and not added to anything.

        Raises:
            ValueError: there is no such mode.
        """
        if mode not in MODES:
            raise ValueError(f"no mode {mode!r}; the modes are {', '.join(MODES)}")
        if mode == "forward":
            return lambda: self._forward(self._inputs, dropout_p)
        if mode == "backward":
            out = self._forward(self._inputs, dropout_p)
            return lambda: self._backward(out)
        return lambda: self._backward(self._forward(self._inputs, dropout_p))

    def results(self) -> Tensors:
        """`output` and `gradient of ...` each input, without dropout, packed."""
        out = self._forward(self._inputs, 0.0)
        results = {"output": self._to_packed(out) if out.dim() else out.detach()}
        for key, gradient in zip(self._inputs, self._backward(out), strict=True):
            results[f"gradient of {key}"] = self._to_packed(gradient) if key in self._subject.tokens else gradient
        return results

    def _backward(self, out: Tensor) -> tuple[Tensor, ...]:
        if self._grad_out is None:
            self._grad_out = self._random_gradient(out)
        return torch.autograd.grad(out, list(self._inputs.values()), self._grad_out)

    def _random_gradient(self, out: Tensor) -> Tensor:
        """The same numbers for every provider; zeros at padding, which no loss reads."""
        if not out.dim():
            return torch.ones_like(out)
        shape = (self._subject.num_tokens, *out.shape[2 if self._is_padded else 1 :])
        numbers = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(self._subject.problem.dtype)
        return self._from_packed(numbers.to(out.device, out.dtype))

    def _from_packed(self, packed: Tensor) -> Tensor:
        return self._subject.packing.pad(packed) if self._is_padded else packed

    def _to_packed(self, tensor: Tensor) -> Tensor:
        return (self._subject.packing.pack(tensor) if self._is_padded else tensor).detach()
