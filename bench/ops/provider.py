"""One way to compute a subject: eager PyTorch, torch.compile, a kernel of torch's, or a backend of our op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from .cases import BASELINE, SDPA_KERNELS, TORCH_PROVIDERS, VARLEN
from .roofline import MODES
from .subject import Subject, Tensors


class Provider:
    """Inputs of its own, in the layout that it takes, and what is done with them.

    Args:
        subject: what is computed.
        name: one of `TORCH_PROVIDERS`, or a backend of the op.
        dtype: of the tensors; default the problem's.
    """

    def __init__(self, subject: Subject, name: str, dtype: torch.dtype | None = None) -> None:
        self._subject = subject
        self._is_padded = name in TORCH_PROVIDERS and name not in VARLEN
        if name == "compile":
            # fullgraph also makes reaching the limit of recompilations an error, where eager would be run instead.
            self._forward = torch.compile(subject.padded, dynamic=False, fullgraph=True)
        elif name == BASELINE:
            self._forward = subject.padded
        elif name in SDPA_KERNELS:
            self._forward = sdpa_kernel(SDPA_KERNELS[name])(subject.padded)
        else:
            self._forward = lambda inputs, dropout_p: subject.packed(inputs, dropout_p, name)
        self._dtype = dtype or subject.problem.dtype
        self._copies: list[Tensors] = []
        self._grad_out: Tensor | None = None

    def prepare(self, mode: str, dropout_p: float, copy: int = 0) -> Callable[[], Any]:
        """What is to be timed: forward with all that backward needs, backward alone, or both.

        Backward's forward pass is run here. Gradients are returned and not added to anything.

        Args:
            mode: one of `MODES`.
            dropout_p: the op's rate.
            copy: which copy of the inputs is read: each has a place in memory of its own.

        Raises:
            ValueError: there is no such mode.
        """
        if mode not in MODES:
            raise ValueError(f"no mode {mode!r}; the modes are {', '.join(MODES)}")
        inputs = self._inputs(copy)
        if mode == "forward":
            return lambda: self._forward(inputs, dropout_p)
        if mode == "backward":
            out = self._forward(inputs, dropout_p)
            return lambda: self._backward(out, inputs)
        return lambda: self._backward(self._forward(inputs, dropout_p), inputs)

    def results(self) -> Tensors:
        """`output` and `gradient of ...` each input, without dropout, packed."""
        inputs = self._inputs(0)
        out = self._forward(inputs, 0.0)
        results = {"output": self._to_packed(out) if out.dim() else out.detach()}
        for key, gradient in zip(inputs, self._backward(out, inputs), strict=True):
            results[f"gradient of {key}"] = self._to_packed(gradient) if key in self._subject.tokens else gradient
        return results

    def _inputs(self, copy: int) -> Tensors:
        while len(self._copies) <= copy:
            tokens = {key: self._from_packed(tensor) for key, tensor in self._subject.tokens.items()}
            inputs = tokens | self._subject.weights
            self._copies.append({k: t.to(self._dtype, copy=True).requires_grad_() for k, t in inputs.items()})
        return self._copies[copy]

    def _backward(self, out: Tensor, inputs: Tensors) -> tuple[Tensor, ...]:
        if self._grad_out is None:
            self._grad_out = self._random_gradient(out)
        return torch.autograd.grad(out, list(inputs.values()), self._grad_out)

    def _random_gradient(self, out: Tensor) -> Tensor:
        """The same numbers for every provider; zeros at padding, which no loss reads."""
        if not out.dim():
            return torch.ones_like(out)
        shape = (self._subject.num_tokens, *out.shape[2 if self._is_padded else 1 :])
        numbers = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(self._subject.problem.dtype)
        return self._from_packed(numbers.to(out.device, out.dtype))

    def _from_packed(self, packed: Tensor) -> Tensor:
        return self._subject.packing.pad(packed)[0] if self._is_padded else packed

    def _to_packed(self, tensor: Tensor) -> Tensor:
        return (self._subject.packing.pack(tensor)[0] if self._is_padded else tensor).detach()
