"""Masked multi-head attention over packed sequences, in Triton: what is allocated, and how the kernels are cut."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import attention_kernels as kernels
from .counter_rng import dropout_constants
from .launch import architecture, launch

MAX_HEAD_SIZE = 128
#: The most keys that one tile holds.
MAX_KEYS = 512


class Tiles(NamedTuple):
    """How a kernel is cut: queries and keys of a tile, and what the compiler is told."""

    queries: int
    keys: int
    warps: int
    stages: int


# By dtype (float32 or half precision) and head size (up to 64, or 128). Of a list, the first whose keys hold the
# longest sequence: then one tile sees all keys of its queries. Where none does, the last takes keys block by block.
# Reasoned from what the compiler makes of them for compute capability 8.0, 9.0 and 10.0: registers, shared memory, and
# no spills in half precision. Not yet measured on a GPU.
_HALF, _FLOAT32 = False, True
_FORWARD = {
    (_HALF, 64): [
        Tiles(16, 16, 1, 1),
        Tiles(32, 32, 2, 1),
        Tiles(64, 64, 4, 1),
        Tiles(64, 128, 4, 1),
        Tiles(32, 256, 8, 1),
        Tiles(16, 512, 8, 1),
        Tiles(128, 64, 8, 2),
    ],
    (_HALF, 128): [
        Tiles(16, 16, 1, 1),
        Tiles(32, 32, 4, 1),
        Tiles(64, 64, 4, 1),
        Tiles(64, 128, 8, 1),
        Tiles(128, 64, 8, 2),
    ],
    (_FLOAT32, 64): [Tiles(16, 16, 1, 1), Tiles(32, 32, 4, 1), Tiles(32, 64, 4, 1), Tiles(32, 32, 4, 1)],
    (_FLOAT32, 128): [Tiles(16, 16, 2, 1), Tiles(16, 32, 4, 1)],
}
_BACKWARD = {
    (_HALF, 64): [
        Tiles(16, 16, 2, 1),
        Tiles(32, 32, 4, 1),
        Tiles(64, 64, 4, 1),
        Tiles(64, 128, 8, 1),
        Tiles(32, 64, 8, 1),
    ],
    (_HALF, 128): [Tiles(16, 16, 4, 1), Tiles(32, 32, 4, 1), Tiles(64, 64, 8, 1), Tiles(32, 32, 8, 1)],
    (_FLOAT32, 64): [Tiles(16, 16, 4, 1), Tiles(32, 32, 8, 1), Tiles(16, 32, 8, 1)],
    (_FLOAT32, 128): [Tiles(16, 16, 8, 1)],
}
# What fits the registers of compute capability 9.0 and does not those of 8.0.
_FORWARD_BEFORE_90 = _FORWARD | {(_HALF, 128): [*_FORWARD[_HALF, 128][:-1], Tiles(64, 64, 8, 2)]}
_BACKWARD_BEFORE_90 = _BACKWARD | {
    (_HALF, 64): [*_BACKWARD[_HALF, 64][:2], Tiles(32, 64, 4, 1), Tiles(32, 128, 8, 1), _BACKWARD[_HALF, 64][-1]]
}

# Programs that keep a GPU busy: where sequences times heads are fewer, backward divides long sequences' keys up.
_PROGRAMS = 256


def _tiles(table: dict[tuple[bool, int], list[Tiles]], q: Tensor, keys: int, queries: int) -> tuple[Tiles, bool]:
    """The tiles for sequences of up to so many keys and queries, and whether one holds all keys."""
    choices = table[q.dtype == torch.float32, 64 if q.shape[2] <= 64 else 128]
    tiles = next((t for t in choices if keys <= t.keys), choices[-1])
    return tiles._replace(queries=min(tiles.queries, max(16, triton.next_power_of_2(queries)))), keys <= tiles.keys


def _steps(*tensors: Tensor) -> list[int]:
    """How far apart tokens and heads are, of each tensor."""
    return [step for tensor in tensors for step in tensor.stride()[:2]]


def _constants(
    q: Tensor, tiles: Tiles, one_block: bool, zero_pruned: bool, seed: Tensor | None, dropout_p: float
) -> dict[str, Any]:
    size = q.shape[2]
    if size > MAX_HEAD_SIZE:
        raise ValueError(f"attention: heads of {size} values, expected at most {MAX_HEAD_SIZE}")
    return {
        "HEAD_SIZE": size,
        "BLOCK_D": max(16, triton.next_power_of_2(size)),
        "BLOCK_M": tiles.queries,
        "BLOCK_N": tiles.keys,
        "ONE_BLOCK": one_block,
        "ZERO_PRUNED": zero_pruned,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
        **dropout_constants(seed, dropout_p),
    }


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    head_mask: Tensor | None,
    head_gates: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    scale: float,
    window: int | None = None,
    saves: bool = True,
    *,
    zero_pruned: bool = True,
) -> tuple[Tensor, Any]:
    """`out (Tq, H, D)` and the log-sum-exp of the scores, float32 `(H, Tq)`, None unless `saves`; see `ops.attention`.

    Args:
        q, k, v: float32, float16 or bfloat16, strided in any way that leaves a head's values side by side.
        seed: int64, 0-d, or None to drop nothing.
        window: as in `ops.attention`.
        zero_pruned: write zeros for a pruned head; otherwise its part of `out` is left as it was allocated.

    Raises:
        ValueError: heads have more than `MAX_HEAD_SIZE` values.
    """
    tokens_q, heads, _ = q.shape
    # A caller's bound may be far above what there is.
    queries = min(max_seqlen_q, tokens_q)
    table = _FORWARD if architecture(q) >= 90 else _FORWARD_BEFORE_90
    sequences = len(cu_seqlens) - 1
    tiles, one_block = _tiles(table, q, min(max_seqlen, k.shape[0]), queries)
    stay = one_block and tiles.keys > 128
    if stay and 4 * k.shape[0] < 3 * sequences * tiles.keys:
        # Most sequences are far shorter than the longest: key blocks end where a sequence does.
        tiles, one_block = _tiles(table, q, MAX_KEYS + 1, queries)
        stay = False
    constants = _constants(q, tiles, one_block, zero_pruned, seed, dropout_p)
    out = q.new_empty(q.shape)
    logsumexp = q.new_empty((heads, tokens_q), dtype=torch.float32) if saves else None
    blocks = triton.cdiv(queries, tiles.queries)
    if stay:  # as few programs load a head's keys as keep a GPU busy
        blocks = min(blocks, triton.cdiv(_PROGRAMS, max(1, sequences * heads)))
    launch(
        kernels.forward,
        (sequences * blocks * heads,),
        *(q, k, v, out, logsumexp, cu_seqlens, cu_seqlens_q, head_mask, head_gates, seed),
        *_steps(q, k, v),
        *(heads, tokens_q, blocks, scale, window),
        STAY=stay,
        **constants,
    )
    return out, logsumexp


def backward(
    grad_out: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    head_mask: Tensor | None,
    head_gates: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    scale: float,
    window: int | None = None,
    *,
    zero_pruned: bool = True,
    grads: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`grad_q`, `grad_k`, `grad_v`, and `grad_gates (H,)`, float32 (empty without gates).

    Repeated runs give the same bits.

    Args:
        grad_out: like `out`, strided in any way.
        out, logsumexp: what `forward` gave for the other arguments.
        zero_pruned: write zeros for a pruned head; otherwise its parts of the first three are not written at all, or
            hold anything. The gradient of its gate is always 0.
        grads: where to put the first three, strided as q, k and v may be; by default they are allocated.

    Raises:
        ValueError: heads have more than `MAX_HEAD_SIZE` values.
    """
    tokens_q, heads, size = q.shape
    sequences = len(cu_seqlens) - 1
    keys, queries = min(max_seqlen, k.shape[0]), min(max_seqlen_q, tokens_q)
    table = _BACKWARD if architecture(q) >= 90 else _BACKWARD_BEFORE_90
    tiles, one_block = _tiles(table, q, keys, queries)
    constants = _constants(q, tiles, one_block, zero_pruned, seed, dropout_p)
    if grad_out.stride(2) != 1:
        grad_out = grad_out.contiguous()
    grad_q, grad_k, grad_v = [t.new_empty(t.shape) for t in (q, k, v)] if grads is None else grads

    shares, share_keys, stat_blocks = 1, keys, 0
    partial_q = stats = None  # where one tile sees all keys of a query, its gradient is written at once
    if not one_block:
        wanted = max(1, _PROGRAMS // max(1, sequences * heads))
        share_keys = triton.cdiv(triton.cdiv(keys, tiles.keys), wanted) * tiles.keys
        shares = triton.cdiv(keys, share_keys)
        # Each sequence starts a new block, whatever the last one left of its own.
        stat_blocks = tokens_q // tiles.queries + sequences
        stats = q.new_empty((shares, heads, 2, stat_blocks * tiles.queries), dtype=torch.float32)
        partial_q = q.new_zeros((shares, tokens_q, heads, size), dtype=torch.float32)
    grad_gates = q.new_empty(0 if head_gates is None else (sequences * shares, heads), dtype=torch.float32)
    launch(
        kernels.backward,
        (sequences * shares * heads,),
        *(grad_out, out, logsumexp, q, k, v, grad_q, grad_k, grad_v, grad_gates, partial_q, stats),
        *(cu_seqlens, cu_seqlens_q, head_mask, head_gates, seed),
        *_steps(grad_out, q, k, v, grad_q, grad_k, grad_v),
        *(heads, tokens_q, shares, share_keys, stat_blocks, scale, window),
        ONE_TILE=one_block and queries <= tiles.queries,
        **constants,
    )
    if partial_q is not None:
        torch.mul(partial_q[0] if shares == 1 else partial_q.sum(0), scale, out=grad_q)
    return grad_q, grad_k, grad_v, grad_gates if head_gates is None else grad_gates.sum(0)
