"""Dropping a batch's padding and putting it back by the CUDA extension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import cuda

refuses = cuda.refuses_device


def unpad(tensors: Sequence[Tensor], index: Tensor, batch: int, seq: int) -> list[Tensor]:
    """`(B, S, ...)` -> `(T, ...)`, each; see `ops.unpad`. A place outside the batch gives zeros."""
    tensors = [t if _has_contiguous_rows(t) else t.contiguous() for t in tensors]
    packed = [torch.empty(index.shape[0], *t.shape[2:], dtype=t.dtype, device=t.device) for t in tensors]
    described = [
        (
            t.data_ptr(),
            out.data_ptr(),
            t.shape[2:].numel() * t.element_size(),
            *(n * t.element_size() for n in t.stride()[:2]),
        )
        for t, out in zip(tensors, packed, strict=True)
    ]
    index = index.contiguous()
    cuda.extension.unpad(*cuda.launch(index), batch, seq, index.shape[0], index.data_ptr(), described)
    return packed


def pad(tensors: Sequence[Tensor], index: Tensor, batch: int, seq: int) -> list[Tensor]:
    """`(T, ...)` -> `(B, S, ...)`, each; see `ops.pad`. Every element is written once."""
    tensors = [t.contiguous() for t in tensors]
    padded = [torch.empty(batch, seq, *t.shape[1:], dtype=t.dtype, device=t.device) for t in tensors]
    described = [
        (t.data_ptr(), out.data_ptr(), t.shape[1:].numel() * t.element_size(), 0, 0)
        for t, out in zip(tensors, padded, strict=True)
    ]
    index = index.contiguous()
    cuda.extension.pad(*cuda.launch(index), batch, seq, index.shape[0], index.data_ptr(), described)
    return padded


def _has_contiguous_rows(padded: Tensor) -> bool:
    """Whether each token's entries lie one behind the other, however far its neighbours are."""
    expected = 1
    for size, stride in zip(reversed(padded.shape[2:]), reversed(padded.stride()[2:]), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
