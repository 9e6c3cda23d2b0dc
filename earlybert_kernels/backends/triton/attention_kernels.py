"""The kernels of attention; `attention` launches them.

A tile is some queries of one head of one sequence against some of its keys. Matrix products take the inputs' dtype
and add up in float32; everything else is float32. Scores are kept in base 2, where an exponential is one instruction.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from .counter_rng import keep, keep_rows

_LOG2_E: tl.constexpr = tl.constexpr(math.log2(math.e))
_LN_2: tl.constexpr = tl.constexpr(math.log(2.0))

# Sizes that change from batch to batch: no reason to compile anew for those divisible by 16.
_SIZES = ["heads", "tokens_q", "blocks", "shares", "share_keys", "stat_blocks"]


@triton.jit
def _dot(a, b, c):
    """The product of a and b, plus c. Float32 goes to tensor cores as its high and low halves, in three products."""
    return tl.dot(a, b, c, input_precision="tf32x3")


@triton.jit
def _places(rows, count, stride, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Where `rows` of one head stand behind its first one, and which of them and their columns are there."""
    cols = tl.arange(0, BLOCK_D)
    there = (rows < count)[:, None]
    if HEAD_SIZE != BLOCK_D:
        there = there & (cols < HEAD_SIZE)[None, :]
    return rows[:, None] * stride + cols[None, :], there


@triton.jit
def _load_rows(head, rows, count, stride, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    """A tile `(ROWS, BLOCK_D)` of one head of one sequence, 0 where there is nothing."""
    places, there = _places(rows, count, stride, HEAD_SIZE, BLOCK_D)
    return tl.load(head + places, mask=there, other=0.0)


@triton.jit
def _store_rows(head, rows, count, stride, values, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    places, there = _places(rows, count, stride, HEAD_SIZE, BLOCK_D)
    tl.store(head + places, values.to(head.dtype.element_ty), mask=there)


@triton.jit
def _zero_rows(head, begin, count, stride, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr):
    """Zeroes rows `begin:count` of one head of one sequence."""
    zeros = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for start in range(begin, count, BLOCK):
        _store_rows(head, start + tl.arange(0, BLOCK), count, stride, zeros, HEAD_SIZE, BLOCK_D)


@triton.jit
def _drawn_row(head, first_row, rows, tokens_q):
    """The row of each query's weights among all `(heads, tokens_q, keys)`, for `keep`."""
    return tl.cast(head, tl.int64) * tokens_q + first_row + rows


@triton.jit
def _drop(weights, seed, row, cols, scale, THRESHOLD: tl.constexpr):
    """The weights of queries `row` and keys `cols` that dropout keeps, 0 in place of the others."""
    if THRESHOLD > 0:
        # A 0 that the compiler does not know: it would round the weights first, and could not do so by twos any more.
        weights = tl.where(keep(seed, row[:, None], cols[None, :], THRESHOLD), weights, scale * 0.0)
    return weights


@triton.jit
def _seen(rows, cols, count, window):
    """Which of `count` keys, those at places `cols`, the queries at places `rows` attend to: `(ROWS or 1, COLS)`."""
    seen = (cols < count)[None, :]
    if window is not None:
        seen = seen & (tl.abs(rows[:, None] - cols[None, :]) <= window)
    return seen


@triton.jit
def _finite(top, window):
    """The top scores, of which those of queries that see no key are -inf, as numbers that can be subtracted."""
    return top if window is None else tl.maximum(top, -1e30)


@triton.jit
def _attend(queries, keys, values, seen, window, scale, seed, row, BLOCK_N: tl.constexpr, THRESHOLD: tl.constexpr):
    """Attention to all keys at once: values' sums by unnormalised weights, the weights' sums, and the top scores."""
    scores = tl.where(seen, _dot(queries, tl.trans(keys), None) * scale, float("-inf"))
    top = _finite(tl.max(scores, 1), window)
    weights = tl.exp2(scores - top[:, None])
    total = tl.sum(weights, 1)
    weights = _drop(weights, seed, row, tl.arange(0, BLOCK_N), scale, THRESHOLD)
    return _dot(weights.to(values.dtype), values, None), total, top


@triton.jit
def _store_result(
    out,
    logsumexp,
    rows,
    count,
    stride,
    result,
    total,
    top,
    factor,
    window,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    if window is not None:
        total = tl.where(total > 0, total, 1.0)
    _store_rows(out, rows, count, stride, result * (factor / total)[:, None], HEAD_SIZE, BLOCK_D)
    if logsumexp is not None:
        tl.store(logsumexp + rows, (top + tl.log2(total)) * _LN_2, mask=rows < count)


@triton.jit(do_not_specialize=_SIZES)
def forward(
    q,
    k,
    v,
    out,
    logsumexp,
    cu_seqlens,
    cu_seqlens_q,
    head_mask,
    head_gates,
    seed,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    heads,
    tokens_q,
    blocks,
    scale,
    window,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    STAY: tl.constexpr,
    ZERO_PRUNED: tl.constexpr,
    THRESHOLD: tl.constexpr,
    KEPT_SCALE: tl.constexpr,
):
    """One program a block of BLOCK_M queries of one head of one sequence, all keys.

    ONE_BLOCK: no sequence has more than BLOCK_N keys. STAY: they and their values stay on chip, while the program goes
    through every `blocks`-th block of queries; otherwise there are as many programs as the longest sequence has blocks.
    """
    program = tl.program_id(0)
    # Heads run fastest: those of a token lie side by side in memory.
    head, block = program % heads, program // heads
    sequence, begin = block // blocks, block % blocks * BLOCK_M
    first_q = tl.load(cu_seqlens_q + sequence)
    count_q = tl.load(cu_seqlens_q + sequence + 1) - first_q
    if begin >= count_q:
        return
    first_q = first_q.to(tl.int64)
    out += (first_q * heads + head) * HEAD_SIZE
    if logsumexp is not None:
        logsumexp += tl.cast(head, tl.int64) * tokens_q + first_q
    first_k = tl.load(cu_seqlens + sequence)
    count_k = tl.load(cu_seqlens + sequence + 1) - first_k
    pruned = False
    if head_mask is not None:
        pruned = tl.load(head_mask + head) == 0
    if pruned or count_k == 0:
        if ZERO_PRUNED or count_k == 0:
            for start in range(begin, count_q, blocks * BLOCK_M):
                rows = start + tl.arange(0, BLOCK_M)
                zeros = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
                _store_rows(out, rows, count_q, heads * HEAD_SIZE, zeros, HEAD_SIZE, BLOCK_D)
                if logsumexp is not None:
                    tl.store(logsumexp + rows, tl.zeros([BLOCK_M], tl.float32), mask=rows < count_q)
        return
    first_k = first_k.to(tl.int64)
    q += first_q * q_token + head * q_head
    k += first_k * k_token + head * k_head
    v += first_k * v_token + head * v_head
    scale *= _LOG2_E
    factor = KEPT_SCALE
    if head_gates is not None:
        factor *= tl.load(head_gates + head)
    seed_value = 0
    if THRESHOLD > 0:
        seed_value = tl.load(seed)
    step = heads * HEAD_SIZE
    rows = begin + tl.arange(0, BLOCK_M)
    if ONE_BLOCK:
        cols = tl.arange(0, BLOCK_N)
        keys = _load_rows(k, cols, count_k, k_token, HEAD_SIZE, BLOCK_D)
        values = _load_rows(v, cols, count_k, v_token, HEAD_SIZE, BLOCK_D)
        if STAY:
            for start in range(begin, count_q, blocks * BLOCK_M):
                rows = start + tl.arange(0, BLOCK_M)
                queries = _load_rows(q, rows, count_q, q_token, HEAD_SIZE, BLOCK_D)
                drawn = _drawn_row(head, first_q, rows, tokens_q)
                seen = _seen(rows, cols, count_k, window)
                result, total, top = _attend(
                    queries, keys, values, seen, window, scale, seed_value, drawn, BLOCK_N, THRESHOLD
                )
                _store_result(
                    out, logsumexp, rows, count_q, step, result, total, top, factor, window, HEAD_SIZE, BLOCK_D
                )
        else:
            queries = _load_rows(q, rows, count_q, q_token, HEAD_SIZE, BLOCK_D)
            drawn = _drawn_row(head, first_q, rows, tokens_q)
            seen = _seen(rows, cols, count_k, window)
            result, total, top = _attend(
                queries, keys, values, seen, window, scale, seed_value, drawn, BLOCK_N, THRESHOLD
            )
            _store_result(out, logsumexp, rows, count_q, step, result, total, top, factor, window, HEAD_SIZE, BLOCK_D)
    else:
        queries = _load_rows(q, rows, count_q, q_token, HEAD_SIZE, BLOCK_D)
        drawn = _drawn_row(head, first_q, rows, tokens_q)
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        result = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        first_key, last_key = 0, count_k
        if window is not None:
            first_key = tl.maximum(begin - window, 0) // BLOCK_N * BLOCK_N
            last_key = tl.minimum(begin + BLOCK_M + window, count_k)
        for start in range(first_key, last_key, BLOCK_N):
            cols = start + tl.arange(0, BLOCK_N)
            keys = _load_rows(k, cols, count_k, k_token, HEAD_SIZE, BLOCK_D)
            scores = _dot(queries, tl.trans(keys), None) * scale
            scores = tl.where(_seen(rows, cols, count_k, window), scores, float("-inf"))
            new_top = _finite(tl.maximum(top, tl.max(scores, 1)), window)
            weights = tl.exp2(scores - new_top[:, None])
            shrink = tl.exp2(top - new_top)
            total = total * shrink + tl.sum(weights, 1)
            top = new_top
            weights = _drop(weights, seed_value, drawn, cols, scale, THRESHOLD)
            values = _load_rows(v, cols, count_k, v_token, HEAD_SIZE, BLOCK_D)
            result = _dot(weights.to(values.dtype), values, result * shrink[:, None])
        _store_result(out, logsumexp, rows, count_q, step, result, total, top, factor, window, HEAD_SIZE, BLOCK_D)


@triton.jit(do_not_specialize=_SIZES)
def backward(
    grad_out,
    out,
    logsumexp,
    q,
    k,
    v,
    grad_q,
    grad_k,
    grad_v,
    grad_gates,
    partial_q,
    stats,
    cu_seqlens,
    cu_seqlens_q,
    head_mask,
    head_gates,
    seed,
    grad_out_token,
    grad_out_head,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    grad_q_token,
    grad_q_head,
    grad_k_token,
    grad_k_head,
    grad_v_token,
    grad_v_head,
    heads,
    tokens_q,
    shares,
    share_keys,
    stat_blocks,
    scale,
    window,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    ONE_TILE: tl.constexpr,
    ZERO_PRUNED: tl.constexpr,
    THRESHOLD: tl.constexpr,
    KEPT_SCALE: tl.constexpr,
):
    """One program a share of `share_keys` keys of one head of one sequence, all queries.

    With S the scores, P = softmax(S), F the dropout factors, c the gate and G the gradient of the output:
        grad_v = c (P F)^T G;  grad_c = sum((P F)^T G * v);  grad_S = P (c F (G v^T) - delta)
        with delta = c rowsum(P F (G v^T)) = rowsum(G * out)
    Tiles are (keys, queries): so P and grad_S stand in registers as the products for grad_v and grad_k take them,
    and only that for grad_q has to turn grad_S around. Each tile, and its dropout mask, is computed once.

    ONE_BLOCK: no sequence has more than BLOCK_N keys; ONE_TILE: nor more than BLOCK_M queries.
    Otherwise the parts of grad_q from one key block after the other are added to `partial_q`, float32
    (shares, tokens_q, heads, HEAD_SIZE), which starts as zeros: each program has rows of its own, so nothing is added
    atomically. Whoever launched makes grad_q of it.
    `stats`: float32 (shares, heads, 2, stat_blocks * BLOCK_M), for each query its logsumexp in base 2 and its delta.
    The rows of a sequence start at a multiple of BLOCK_M there, so that they are read in vectors, without masks.
    """
    program = tl.program_id(0)
    head, block = program % heads, program // heads
    sequence, share = block // shares, block % shares
    begin = share * share_keys
    first_q = tl.load(cu_seqlens_q + sequence)
    count_q = tl.load(cu_seqlens_q + sequence + 1) - first_q
    first_k = tl.load(cu_seqlens + sequence)
    end = tl.minimum(begin + share_keys, tl.load(cu_seqlens + sequence + 1) - first_k)
    stat_row = (first_q // BLOCK_M + sequence) * BLOCK_M
    first_q, first_k = first_q.to(tl.int64), first_k.to(tl.int64)
    grad_q += first_q * grad_q_token + head * grad_q_head
    grad_k += first_k * grad_k_token + head * grad_k_head
    grad_v += first_k * grad_v_token + head * grad_v_head
    if head_gates is not None:
        grad_gates += tl.cast(block, tl.int64) * heads + head
    if head_mask is not None and tl.load(head_mask + head) == 0:
        if head_gates is not None:
            tl.store(grad_gates, 0.0)
        if ZERO_PRUNED:
            if ONE_BLOCK:
                _zero_rows(grad_q, 0, count_q, grad_q_token, HEAD_SIZE, BLOCK_D, BLOCK_M)
            _zero_rows(grad_k, begin, end, grad_k_token, HEAD_SIZE, BLOCK_D, BLOCK_N)
            _zero_rows(grad_v, begin, end, grad_v_token, HEAD_SIZE, BLOCK_D, BLOCK_N)
        return
    if begin >= end:  # no keys
        if head_gates is not None:
            tl.store(grad_gates, 0.0)
        if ONE_BLOCK:
            _zero_rows(grad_q, 0, count_q, grad_q_token, HEAD_SIZE, BLOCK_D, BLOCK_M)
        return
    grad_out += first_q * grad_out_token + head * grad_out_head
    q += first_q * q_token + head * q_head
    k += first_k * k_token + head * k_head
    v += first_k * v_token + head * v_head
    logsumexp += tl.cast(head, tl.int64) * tokens_q + first_q
    if not ONE_BLOCK:
        out += (first_q * heads + head) * HEAD_SIZE
        partial_q += ((tl.cast(share, tl.int64) * tokens_q + first_q) * heads + head) * HEAD_SIZE
        stats += (tl.cast(share, tl.int64) * heads + head) * (2 * stat_blocks) * BLOCK_M + stat_row
        delta_stats = stats + stat_blocks * BLOCK_M
        for start in range(0, count_q, BLOCK_M):
            rows = start + tl.arange(0, BLOCK_M)
            grads = _load_rows(grad_out, rows, count_q, grad_out_token, HEAD_SIZE, BLOCK_D)
            outs = _load_rows(out, rows, count_q, heads * HEAD_SIZE, HEAD_SIZE, BLOCK_D)
            tl.store(stats + rows, tl.load(logsumexp + rows, mask=rows < count_q, other=0.0) * _LOG2_E)
            tl.store(delta_stats + rows, tl.sum(grads.to(tl.float32) * outs.to(tl.float32), 1))
        tl.debug_barrier()  # other threads read them
    gate = 1.0
    if head_gates is not None:
        gate = tl.load(head_gates + head)
    factor = gate * KEPT_SCALE
    if THRESHOLD > 0:
        seed_value = tl.load(seed)
    base_2_scale = scale * _LOG2_E
    grad_gate = 0.0

    for key in range(0 if ONE_BLOCK else begin, BLOCK_N if ONE_BLOCK else end, BLOCK_N):
        cols = key + tl.arange(0, BLOCK_N)
        keys = _load_rows(k, cols, end, k_token, HEAD_SIZE, BLOCK_D)
        values = _load_rows(v, cols, end, v_token, HEAD_SIZE, BLOCK_D)
        grad_keys = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        grad_values = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        first_row, last_row = 0, BLOCK_M if ONE_TILE else count_q
        if window is not None and not ONE_BLOCK:
            first_row = tl.maximum(key - window, 0) // BLOCK_M * BLOCK_M
            last_row = tl.minimum(key + BLOCK_N + window, count_q)
        for start in range(first_row, last_row, BLOCK_M):
            rows = start + tl.arange(0, BLOCK_M)
            if THRESHOLD > 0:
                drawn = _drawn_row(head, first_q, rows, tokens_q)
                kept = tl.trans(keep_rows(seed_value, drawn, key, BLOCK_N, THRESHOLD))
            queries = _load_rows(q, rows, count_q, q_token, HEAD_SIZE, BLOCK_D)
            scores = _dot(keys, tl.trans(queries), None) * base_2_scale
            if ONE_BLOCK:
                top = tl.load(logsumexp + rows, mask=rows < count_q, other=0.0) * _LOG2_E
            else:
                top = tl.load(stats + rows)
            seen = (cols < end)[:, None]
            if window is not None:
                seen = seen & (tl.abs(cols[:, None] - rows[None, :]) <= window)
            weights = tl.where(seen, tl.exp2(scores - top[None, :]), 0.0)
            grads = _load_rows(grad_out, rows, count_q, grad_out_token, HEAD_SIZE, BLOCK_D)
            dropped = weights
            if THRESHOLD > 0:
                dropped = tl.where(kept, weights, 0.0)
            if ONE_BLOCK:  # the order of the next two products in which nothing is spilled
                grad_values = _dot(dropped.to(grads.dtype), grads, grad_values)
            grad_weights = _dot(values, tl.trans(grads), None)
            if THRESHOLD > 0:
                grad_weights = tl.where(kept, grad_weights, 0.0)
            if not ONE_BLOCK:
                grad_values = _dot(dropped.to(grads.dtype), grads, grad_values)
            delta = tl.sum(weights * grad_weights, 0) * factor if ONE_BLOCK else tl.load(delta_stats + rows)
            grad_scores = (weights * (grad_weights * factor - delta[None, :])).to(queries.dtype)
            grad_keys = _dot(grad_scores, queries, grad_keys)
            grad_queries = _dot(tl.trans(grad_scores), keys, None)
            if ONE_BLOCK:
                _store_rows(grad_q, rows, count_q, grad_q_token, grad_queries * scale, HEAD_SIZE, BLOCK_D)
            else:
                places, there = _places(rows, count_q, heads * HEAD_SIZE, HEAD_SIZE, BLOCK_D)
                grad_queries += tl.load(partial_q + places, mask=there, other=0.0)
                tl.store(partial_q + places, grad_queries, mask=there)
        if head_gates is not None:
            # Read again rather than kept in registers over the loop.
            values = _load_rows(v, cols, end, v_token, HEAD_SIZE, BLOCK_D).to(tl.float32)
            grad_gate += tl.sum(grad_values * values) * KEPT_SCALE
        _store_rows(grad_k, cols, end, grad_k_token, grad_keys * scale, HEAD_SIZE, BLOCK_D)
        _store_rows(grad_v, cols, end, grad_v_token, grad_values * factor, HEAD_SIZE, BLOCK_D)
        if not ONE_BLOCK:
            tl.debug_barrier()  # the next block reads partial_q, where the compiler may pick other threads for it
    if head_gates is not None:
        tl.store(grad_gates, grad_gate)
