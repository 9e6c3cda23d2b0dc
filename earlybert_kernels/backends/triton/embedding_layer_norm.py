"""BERT's embeddings: the sum of three tables' rows, layer norm and dropout in one pass, and their gradients.

An id outside its table reads nothing: its token's row of the output, and whatever is computed from it, is NaN, and it
adds to no table's gradient. (`tl.device_assert` works in debug builds of a kernel only, and torch's own assertion
ends the process's use of the GPU.)
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .counter_rng import dropout_constants
from .launch import launch
from .layer_norm import input_gradient, keep_tile, normalise
from .rows import column_sums, load_for_rows, resident_programs, store_partial, tiling, zero_tiles


@triton.jit
def _load_ids(ids, row, live, count):
    """The id of each row, and which are rows of their table of `count`."""
    own = tl.load(ids + row, mask=live, other=0)
    return own, (own >= 0) & (own < count)


@triton.jit
def _sum_of_tables(word, position, token_type, w, p, t, col, mask, E: tl.constexpr):
    total = tl.load(word + w[:, None] * E + col[None, :], mask=mask, other=0.0).to(tl.float32)
    total += tl.load(position + p[:, None] * E + col[None, :], mask=mask, other=0.0).to(tl.float32)
    total += tl.load(token_type + t[:, None] * E + col[None, :], mask=mask, other=0.0).to(tl.float32)
    return total


@triton.jit(do_not_specialize=["tokens"])
def _forward_kernel(
    input_ids,
    position_ids,
    token_type_ids,
    word,
    position,
    token_type,
    words,
    positions,
    token_types,
    weight,
    bias,
    seed,
    out,
    mean,
    rstd,
    tokens,
    eps,
    E: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    THRESHOLD: tl.constexpr,
    KEPT_SCALE: tl.constexpr,
):
    CHUNKS: tl.constexpr = (E + COLS - 1) // COLS
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = row < tokens
    w, w_known = _load_ids(input_ids, row, live, words)
    p, p_known = _load_ids(position_ids, row, live, positions)
    t, t_known = _load_ids(token_type_ids, row, live, token_types)
    known = w_known & p_known & t_known
    if THRESHOLD > 0:
        key = tl.load(seed)
    sums = ()
    for chunk in tl.static_range(CHUNKS):
        col = chunk * COLS + tl.arange(0, COLS)
        mask = (live & known)[:, None] & (col < E)[None, :]
        sums = sums + (_sum_of_tables(word, position, token_type, w, p, t, col, mask, E),)
    # NaN in place of eps makes all of the row NaN, and in backward its gradient.
    row_eps = tl.where(known, eps, float("nan"))
    normalised, row_mean, row_rstd = normalise(sums, row_eps, E, COLS, CHUNKS)
    for chunk in tl.static_range(CHUNKS):
        col = chunk * COLS + tl.arange(0, COLS)
        mask = live[:, None] & (col < E)[None, :]
        tile = normalised[chunk] * load_for_rows(weight, row, col, mask) + load_for_rows(bias, row, col, mask)
        if THRESHOLD > 0:
            tile *= tl.where(keep_tile(key, row, chunk, COLS, THRESHOLD), KEPT_SCALE, 0.0)
        tl.store(out + row[:, None] * E + col[None, :], tile.to(out.dtype.element_ty), mask=mask)
    if mean is not None:
        tl.store(mean + row, row_mean, mask=live)
        tl.store(rstd + row, row_rstd, mask=live)


@triton.jit(do_not_specialize=["tokens"])
def _backward_kernel(
    grad_out,
    input_ids,
    position_ids,
    token_type_ids,
    word,
    position,
    token_type,
    words,
    positions,
    token_types,
    weight,
    mean,
    rstd,
    seed,
    grad_sum,
    word_rows,
    pair_rows,
    partials,
    tokens,
    padding_id,
    E: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    THRESHOLD: tl.constexpr,
    KEPT_SCALE: tl.constexpr,
):
    CHUNKS: tl.constexpr = (E + COLS - 1) // COLS
    if THRESHOLD > 0:
        key = tl.load(seed)
    weight_sums = zero_tiles(ROWS, COLS, CHUNKS)
    bias_sums = zero_tiles(ROWS, COLS, CHUNKS)
    for start in range(tl.program_id(0) * ROWS, tokens, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS).to(tl.int64)
        live = row < tokens
        w, w_known = _load_ids(input_ids, row, live, words)
        p, p_known = _load_ids(position_ids, row, live, positions)
        t, t_known = _load_ids(token_type_ids, row, live, token_types)
        known = w_known & p_known & t_known
        tl.store(word_rows + row, tl.where(known & (w != padding_id), w, words.to(tl.int64)), mask=live)
        pairs = positions.to(tl.int64) * token_types
        tl.store(pair_rows + row, tl.where(known, p * token_types + t, pairs), mask=live)
        row_mean = tl.load(mean + row, mask=live, other=0.0)
        row_rstd = tl.load(rstd + row, mask=live, other=0.0)
        normalised = ()
        grad = ()
        new_weight_sums = ()
        new_bias_sums = ()
        for chunk in tl.static_range(CHUNKS):
            col = chunk * COLS + tl.arange(0, COLS)
            mask = live[:, None] & (col < E)[None, :]
            tile = _sum_of_tables(word, position, token_type, w, p, t, col, mask & known[:, None], E)
            grad_tile = tl.load(grad_out + row[:, None] * E + col[None, :], mask=mask, other=0.0).to(tl.float32)
            if THRESHOLD > 0:
                grad_tile *= tl.where(keep_tile(key, row, chunk, COLS, THRESHOLD), KEPT_SCALE, 0.0)
            tile = (tile - row_mean[:, None]) * row_rstd[:, None]
            new_weight_sums = new_weight_sums + (weight_sums[chunk] + grad_tile * tile,)
            new_bias_sums = new_bias_sums + (bias_sums[chunk] + grad_tile,)
            normalised = normalised + (tile,)
            grad = grad + (grad_tile * load_for_rows(weight, row, col, mask),)
        weight_sums = new_weight_sums
        bias_sums = new_bias_sums
        grad = input_gradient(grad, normalised, row_rstd, E, CHUNKS)
        for chunk in tl.static_range(CHUNKS):
            col = chunk * COLS + tl.arange(0, COLS)
            mask = live[:, None] & (col < E)[None, :]
            tile = grad[chunk].to(grad_sum.dtype.element_ty)
            tl.store(grad_sum + row[:, None] * E + col[None, :], tile, mask=mask)
    store_partial(partials, 0, weight_sums, E, COLS, CHUNKS)
    store_partial(partials, 1, bias_sums, E, COLS, CHUNKS)


def _result_dtype(*tables: Tensor) -> torch.dtype:
    """What the tables promote to."""
    dtype = tables[0].dtype
    for table in tables[1:]:
        dtype = torch.promote_types(dtype, table.dtype)
    return dtype


def forward(
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor,
    word: Tensor,
    position: Tensor,
    token_type: Tensor,
    weight: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    padding_id: int,
    dropout_p: float,
    eps: float,
    saves: bool = True,
) -> tuple[Tensor, Any, Any]:
    """`dropout(LayerNorm(word[input_ids] + position[position_ids] + token_type[token_type_ids]))`.

    Args:
        input_ids, position_ids, token_type_ids: int64 `(T,)`.
        word, position, token_type: `(rows, E)`.
        weight, bias: `(E,)`.
        seed: int64 0-d on the tables' device, or None for no dropout.
        padding_id: the row of `word` that gets no gradient, or -1.
        dropout_p: in [0, 1).
        eps: added to the variance.
        saves: whether to return the statistics.

    Returns:
        `out (T, E)` of the dtype that the tables promote to, `mean (T,)` and `rstd (T,)`, float32, or None.
    """
    ids = [t.contiguous() for t in (input_ids, position_ids, token_type_ids)]
    tables = [t.contiguous() for t in (word, position, token_type)]
    tokens, width = input_ids.shape[0], word.shape[1]
    out = torch.empty(tokens, width, dtype=_result_dtype(*tables), device=word.device)
    mean, rstd = (torch.empty(tokens, dtype=torch.float32, device=word.device) if saves else None for _ in range(2))
    tile_rows, cols, num_warps = tiling(width)
    launch(
        _forward_kernel,
        (triton.cdiv(tokens, tile_rows),),
        *ids,
        *tables,
        *(table.shape[0] for table in tables),
        weight.contiguous(),
        bias.contiguous(),
        seed,
        out,
        mean,
        rstd,
        tokens,
        eps,
        E=width,
        ROWS=tile_rows,
        COLS=cols,
        num_warps=num_warps,
        **dropout_constants(seed, dropout_p),
    )
    return out, mean, rstd


def backward(
    grad_out: Tensor,
    mean: Tensor,
    rstd: Tensor,
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor,
    word: Tensor,
    position: Tensor,
    token_type: Tensor,
    weight: Tensor,
    seed: Tensor | None,
    padding_id: int,
    dropout_p: float,
) -> tuple[Tensor, ...]:
    """The gradients of word, position, token_type, weight and bias, the same in every run on one kind of GPU.

    The kernel writes the gradient of each token's sum once. torch's sort-based scatter adds those to the tables: in
    a fixed order, without atomics or a wait of the host. Every token hits one of the two rows of BERT's `token_type`,
    so the small tables are scattered to as one, a row a pair of position and type, and then summed each way.
    """
    ids = [t.contiguous() for t in (input_ids, position_ids, token_type_ids)]
    tables = [t.contiguous() for t in (word, position, token_type)]
    grad_out, weight = grad_out.contiguous(), weight.contiguous()
    tokens, width = grad_out.shape
    words, positions, token_types = (table.shape[0] for table in tables)
    grad_sum = torch.empty(tokens, width, dtype=_result_dtype(*tables), device=word.device)
    # Tokens that add nothing go to a row behind the table's last.
    word_rows, pair_rows = torch.empty_like(ids[0]), torch.empty_like(ids[0])
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(weight)
    tile_rows, cols, num_warps = tiling(width)
    # A thread keeps two sums and two values of each of 8 columns a tile, and the copies of values that it works on.
    registers = 48 * triton.cdiv(width, cols) + 24
    programs = resident_programs(word, triton.cdiv(tokens, tile_rows), max(2048 // (registers * num_warps), 1))
    partials = torch.empty(2, programs, width, dtype=torch.float32, device=word.device)
    launch(
        _backward_kernel,
        (programs,),
        grad_out,
        *ids,
        *tables,
        words,
        positions,
        token_types,
        weight,
        mean,
        rstd,
        seed,
        grad_sum,
        word_rows,
        pair_rows,
        partials,
        tokens,
        padding_id,
        E=width,
        ROWS=tile_rows,
        COLS=cols,
        num_warps=num_warps,
        **dropout_constants(seed, dropout_p),
    )
    column_sums(partials, grad_weight, grad_bias)
    grad_word = _sum_by_row(grad_sum, word_rows, words).to(word.dtype)
    grad_pairs = _sum_by_row(grad_sum, pair_rows, positions * token_types).view(positions, token_types, width)
    grad_position = grad_pairs.sum(1, dtype=torch.float32).to(position.dtype)
    grad_token_type = grad_pairs.sum(0, dtype=torch.float32).to(token_type.dtype)
    return grad_word, grad_position, grad_token_type, grad_weight, grad_bias


def _sum_by_row(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """`(count, E)`: for each row the sum of the values `(T, E)` whose entry of `rows`, 0 to count, is that row."""
    return torch.ops.aten.embedding_dense_backward(values, rows, count + 1, count, False)[:count]
