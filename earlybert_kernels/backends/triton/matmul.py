"""The matrix product of this backend, of which a part of one dimension may be in use that only the device knows."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import activate, activate_with_slope
from .launch import launch


class Used(NamedTuple):
    """How much of a dimension is in use: the first `units * size`.

    Attributes:
        units: int32, 0-d, on the device.
        size: rows or columns of a unit. If it is 1 and the dimension is an inner one, what stands behind the units up
            to the next multiple of 16 is read, and has to be finite in one operand and 0 in the other.
    """

    units: Tensor
    size: int


class Tile(NamedTuple):
    """How one program computes its part of the result.

    Attributes:
        m, n, k: the part's rows and columns, and how much of the inner dimension it takes at a time.
        warps, stages: what the compiler is told.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int


# float32 goes through the tensor cores as three products of tf32, which is nearly exact.
_PRECISION = {torch.float32: "tf32x3", torch.float16: "tf32", torch.bfloat16: "tf32"}


@triton.jit(do_not_specialize=["M", "K"])  # one of them counts tokens
def _matmul(
    a,
    b,
    c,
    bias,
    preactivation,
    activated,
    column_sums,
    used_units,
    used_size,
    M,
    N,
    K,
    a_m,
    a_k,
    b_k,
    b_n,
    c_m,
    c_part,
    k_part,
    USED: tl.constexpr,
    EPILOGUE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ADD: tl.constexpr,
    M_BY_16: tl.constexpr,
    K_BY_16: tl.constexpr,
    EVEN_K: tl.constexpr,
    ALIGN_USED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One tile of `a (M, K) @ b (K, N)`, of the k_part columns of a that program_id(1) names.

    USED is the dimension that is in use in part ("m", "n", "k"), or "". EPILOGUE "forward" adds the bias, if any, and
    stores the activation of the sum in c, and the sum in `preactivation`, unless that is None, if there is an
    ACTIVATION; "backward" takes the product for the gradient of an activation: it stores that of `preactivation` in c,
    the activation in `activated` and c's sums over the tile's rows in `column_sums`.
    """
    # What is known of M and K, so that loads along them are wide.
    if M_BY_16:
        M = M // 16 * 16
    if K_BY_16:
        K = K // 16 * 16
    # Programs that run side by side share rows of a and columns of b: GROUP rows of tiles are gone through together.
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    program = tl.program_id(0)
    group = program // (GROUP * tiles_n)
    rows = min(tiles_m - group * GROUP, GROUP)
    tile_m = group * GROUP + (program % (GROUP * tiles_n)) % rows
    tile_n = (program % (GROUP * tiles_n)) // rows

    if USED != "":
        used = tl.load(used_units) * used_size
    if USED == "m" and tile_m * BLOCK_M >= used:
        return
    if USED == "n" and tile_n * BLOCK_N >= used:
        return
    if USED == "k":
        # To a multiple of 16, so that loads along k are wide.
        K = min(K, tl.cdiv(used, ALIGN_USED) * ALIGN_USED)

    offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    in_m, in_n = (offs_m < M)[:, None], (offs_n < N)[None, :]
    first_k = tl.program_id(1) * k_part
    offs_k = tl.arange(0, BLOCK_K)
    a_tile = a + offs_m.to(tl.int64)[:, None] * a_m + (first_k + offs_k).to(tl.int64)[None, :] * a_k
    b_tile = b + (first_k + offs_k).to(tl.int64)[:, None] * b_k + offs_n.to(tl.int64)[None, :] * b_n
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(first_k, min(K, first_k + k_part), BLOCK_K):
        if EVEN_K:
            a_part, b_part = tl.load(a_tile, in_m, 0.0), tl.load(b_tile, in_n, 0.0)
        else:
            in_k = k + offs_k < K
            a_part = tl.load(a_tile, in_m & in_k[None, :], 0.0)
            b_part = tl.load(b_tile, in_n & in_k[:, None], 0.0)
        total = tl.dot(a_part, b_part, total, input_precision=PRECISION)
        a_tile += BLOCK_K * a_k
        b_tile += BLOCK_K * b_k

    # Places within the tile fit 32 bits; where it begins may not.
    stored = in_m & in_n
    place = tl.arange(0, BLOCK_M)[:, None] * c_m + offs_n[None, :]
    begin = (tile_m * BLOCK_M).to(tl.int64) * c_m
    c += begin + tl.program_id(1).to(tl.int64) * c_part
    dtype = c.dtype.element_ty
    if EPILOGUE == "forward":
        if bias is not None:
            total += tl.load(bias + offs_n, offs_n < N, 0.0).to(tl.float32)[None, :]
        if ACTIVATION != "none":
            if preactivation is not None:
                tl.store(preactivation + begin + place, total.to(dtype), stored)
            total = activate(total, ACTIVATION)
    else:
        before = tl.load(preactivation + begin + place, stored, 0.0).to(tl.float32)
        after, slope = activate_with_slope(before, ACTIVATION)
        tl.store(activated + begin + place, after.to(dtype), stored)
        total = tl.where(stored, total * slope, 0.0)
        tl.store(column_sums + tile_m * N + offs_n, tl.sum(total, 0), offs_n < N)
    if ADD:
        total += tl.load(c + place, stored, 0.0).to(tl.float32)
    tl.store(c + place, total.to(dtype), stored)


def matmul(
    a: Tensor,
    b: Tensor,
    tile: Tile,
    *,
    used: tuple[str, Used] | None = None,
    bias: Tensor | None = None,
    activation: str = "none",
    add_to: Tensor | None = None,
    parts: int = 1,
    saves: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """`activation(a @ b + bias)`.

    Args:
        a: `(M, K)`; b: `(K, N)`, the same dtype; any strides.
        tile: what a program computes.
        used: of "m", "n" or "k", how much is in use. Behind it the result is written to the end of a tile.
        bias: `(N,)` or None.
        activation: "none" or a name of `reference.feed_forward.ACTIVATIONS`.
        add_to: `(M, N)` with contiguous rows, of any dtype: the result is added to it, in place.
        parts: the inner dimension is cut into that many, which are summed at the end: for small results.
        saves: whether to store what the activation is applied to.

    Returns:
        `(M, N)`, and what the activation was applied to (None without one, or unless `saves`).
    """
    rows, columns = a.shape[0], b.shape[1]
    if parts > 1:
        out = torch.empty(parts, rows, columns, dtype=torch.float32, device=a.device)
    else:
        out = torch.empty(rows, columns, dtype=a.dtype, device=a.device) if add_to is None else add_to
    preactivation = torch.empty_like(out) if saves and activation != "none" else None
    _launch(a, b, out, tile, used, bias, preactivation, None, None, "forward", activation, add_to is not None, parts)
    return out if parts == 1 else out.sum(0).to(a.dtype), preactivation


def matmul_activation_backward(
    a: Tensor, b: Tensor, preactivation: Tensor, tile: Tile, activation: str, *, used: tuple[str, Used] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`a @ b` as the gradient of `activation(preactivation)`.

    Args:
        a, b, tile, used: as in `matmul`.
        preactivation: `(M, N)`, contiguous.
        activation: a name of `reference.feed_forward.ACTIVATIONS`.

    Returns:
        The gradient of `preactivation` `(M, N)`, `activation(preactivation)`, and the gradient's sums over its rows
        `(N,)`, float32.
    """
    rows, columns = a.shape[0], b.shape[1]
    out = torch.empty(rows, columns, dtype=a.dtype, device=a.device)
    activated = torch.empty_like(out)
    sums = torch.empty(triton.cdiv(rows, tile.m), columns, dtype=torch.float32, device=a.device)
    _launch(a, b, out, tile, used, None, preactivation, activated, sums, "backward", activation, False, 1)
    return out, activated, sums.sum(0)


def _launch(a, b, out, tile, used, bias, preactivation, activated, sums, epilogue, activation, add, parts):
    rows, columns, inner = a.shape[0], b.shape[1], a.shape[1]
    dimension, amount = used or ("", Used(None, 1))
    if any(stride % 16 for stride in (*a.stride(), *b.stride(), out.stride(-2)) if stride != 1):
        # Rows begin anywhere, so that every value is read or stored by itself, and the addresses of a whole tile do not
        # fit into the registers.
        tile = tile._replace(n=min(max(tile.n // 2, 16), 64))
    part = triton.cdiv(inner, parts * tile.k) * tile.k
    # Values lie side by side along features, whose number is the model's. The other side of `a` counts tokens, of which
    # each batch has its own number: code that depended on it would be compiled in the middle of a run.
    by_features = a.stride(1) == 1
    launch(
        _matmul,
        (triton.cdiv(rows, tile.m) * triton.cdiv(columns, tile.n), parts),
        a,
        b,
        out,
        bias,
        preactivation,
        activated,
        sums,
        amount.units,
        amount.size,
        rows,
        columns,
        inner,
        *a.stride(),
        *b.stride(),
        out.stride(-2),
        out.stride(0) if parts > 1 else 0,
        part,
        USED=dimension,
        EPILOGUE=epilogue,
        ACTIVATION=activation,
        ADD=add,
        M_BY_16=not by_features and rows % 16 == 0,
        K_BY_16=by_features and inner % 16 == 0,
        EVEN_K=by_features and dimension != "k" and inner % tile.k == 0,
        ALIGN_USED=1 if amount.size % 16 and amount.size > 1 else 16,
        PRECISION=_PRECISION[a.dtype],
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        BLOCK_K=tile.k,
        GROUP=8,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
