"""A call of attention's kernels, both passes, and what they should give."""

from __future__ import annotations

import torch

from earlybert_kernels.reference.counter_rng import keep_mask
from tests.helpers import oracles
from tests.helpers.accuracy import assert_as_exact_as_pytorch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEED = 0x123456789ABCDEF


class Case:
    """Inputs of both passes on the CPU in float64, exactly representable in `dtype`, and what they should give."""

    def __init__(
        self,
        lengths,
        heads=2,
        size=32,
        dtype=torch.float32,
        lengths_q=None,
        mask=None,
        gates=None,
        p=0.0,
        window=None,
    ):
        self.window = window
        self.lengths, self.lengths_q, self.dtype, self.p = lengths, lengths_q or lengths, dtype, p
        shapes = [(sum(n), heads, size) for n in (self.lengths_q, lengths, lengths, self.lengths_q)]
        *self.qkv, self.grad_out = (torch.randn(shape).to(dtype).double() for shape in shapes)
        self.mask = None if mask is None else torch.tensor(mask)
        self.gates = None if gates is None else torch.tensor(gates)
        self.keep = keep_mask(SEED, (heads, sum(self.lengths_q), max(lengths)), p) if p else None

    def defined(self, dtype):
        """Output and gradients by the definition."""
        leaves = [t.to(dtype).requires_grad_() for t in self.qkv]
        if self.gates is not None:
            leaves.append(self.gates.double().requires_grad_())
        present = [(n, n_q) for n, n_q in zip(self.lengths, self.lengths_q, strict=True) if n]
        options = {"keep": self.keep, "dropout_p": self.p, "window": self.window}
        out = oracles.attention(*leaves[:3], *zip(*present, strict=True), *leaves[3:], **options)
        if self.mask is not None:
            out = out * self.mask[:, None]
        return out, *torch.autograd.grad(out, leaves, self.grad_out.to(dtype))

    def inputs(self):
        """`grad_out` and what both passes take, on the device."""
        *qkv, grad_out = (t.to(DEVICE, self.dtype) for t in (*self.qkv, self.grad_out))
        cu_seqlens, cu_seqlens_q = (
            torch.tensor([0, *n], dtype=torch.int32).cumsum(0).int().to(DEVICE) for n in (self.lengths, self.lengths_q)
        )
        mask, gates = (None if t is None else t.to(DEVICE) for t in (self.mask, self.gates))
        seed = torch.tensor(SEED, device=DEVICE) if self.p else None
        packing = (cu_seqlens, max(self.lengths), cu_seqlens_q, max(self.lengths_q))
        return grad_out, [*qkv, *packing, mask, gates, seed, self.p, qkv[0].shape[2] ** -0.5, self.window]

    def check(self, results):
        """`results`, output and gradients, are as exact as plain PyTorch is in this dtype."""
        results = [t.cpu() for t in results]
        assert {t.dtype for t in results[:4]} == {self.dtype} and results[4].dtype == torch.float32
        count = 4 if self.gates is None else 5
        assert results[4].numel() == (0 if self.gates is None else len(self.gates))
        assert_as_exact_as_pytorch(results[:count], self.defined(self.dtype), self.defined(torch.float64), self.dtype)


def run(op, grad_out, arguments, **options):
    """Output and gradients by a backend's module of attention."""
    out, logsumexp = op.forward(*arguments)
    return out, *op.backward(grad_out, out, logsumexp, *arguments, **options)
