"""BERT's embeddings by the CUDA extension: the sum of three tables' rows, layer norm and dropout, and their gradients.

An id outside its table reads nothing: its token's row of the output, and whatever is computed from it, is NaN, and it
adds to no table's gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import address, cuda
from .dropout_add_layer_norm import MAX_COLS


def refuses(
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor,
    word: Tensor,
    position: Tensor,
    token_type: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> str | None:
    """Why these tensors cannot be taken (device, dtype, size), or None."""
    tables = {t.dtype for t in (word, position, token_type)}
    if len(tables) > 1:
        return f"it takes tables of one dtype, got {', '.join(sorted(map(str, tables)))}"
    if weight.dtype != bias.dtype or weight.dtype not in (word.dtype, torch.float32):
        return f"beside tables of {word.dtype} it takes weight and bias of that or of float32"
    if word.shape[1] > MAX_COLS:
        return f"it takes rows of up to {MAX_COLS} values, got {word.shape[1]}"
    return cuda.refuses(input_ids, position_ids, token_type_ids, word, position, token_type, weight, bias)


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
    """`out (T, E)` of the tables' dtype, `mean (T,)` and `rstd (T,)`, float32; see `ops.embedding_layer_norm`.

    Args:
        input_ids, position_ids, token_type_ids: int64 `(T,)`.
        word, position, token_type: `(rows, E)`, of one dtype.
        weight, bias: `(E,)`, of the tables' dtype or float32.
        seed: int64 0-d on the tables' device, or None for no dropout.
        padding_id: the row of `word` that gets no gradient, or -1.
        dropout_p: in [0, 1).
        eps: added to the variance.
        saves: whether to return the statistics, which are None otherwise.
    """
    tables = _contiguous(input_ids, position_ids, token_type_ids, word, position, token_type)
    weight, bias = weight.contiguous(), bias.contiguous()
    tokens, cols = input_ids.shape[0], word.shape[1]
    out = torch.empty(tokens, cols, dtype=word.dtype, device=word.device)
    mean, rstd = (torch.empty(tokens, dtype=torch.float32, device=word.device) if saves else None for _ in range(2))
    cuda.extension.embedding_layer_norm_forward(
        *cuda.launch(word),
        cuda.code(word),
        cuda.code(weight),
        tokens,
        cols,
        _described(tables),
        weight.data_ptr(),
        bias.data_ptr(),
        address(seed),
        dropout_p,
        eps,
        out.data_ptr(),
        address(mean),
        address(rstd),
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
    """The gradients of word, position, token_type, weight and bias, the same in every run.

    One kernel writes the gradient of each token's sum, and which rows it goes to; once those are sorted, another adds
    up what belongs to a row. Every token hits one of the two rows of BERT's `token_type`, so the small tables are
    summed to as one, a row a pair of position and type, and then each way.
    """
    tables = _contiguous(input_ids, position_ids, token_type_ids, word, position, token_type)
    grad_out, weight = grad_out.contiguous(), weight.contiguous()
    tokens, cols = grad_out.shape
    grad_sum = torch.empty_like(grad_out)
    word_keys, pair_keys = (torch.empty(tokens, dtype=torch.int32, device=word.device) for _ in range(2))
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(weight)
    partials = torch.empty(
        2, cuda.extension.layer_norm_partials(tokens, cols), cols, dtype=torch.float32, device=word.device
    )
    cuda.extension.embedding_layer_norm_backward(
        *cuda.launch(word),
        cuda.code(word),
        cuda.code(weight),
        tokens,
        cols,
        _described(tables),
        grad_out.data_ptr(),
        weight.data_ptr(),
        mean.data_ptr(),
        rstd.data_ptr(),
        address(seed),
        dropout_p,
        padding_id,
        grad_sum.data_ptr(),
        word_keys.data_ptr(),
        pair_keys.data_ptr(),
        grad_weight.data_ptr(),
        grad_bias.data_ptr(),
        partials.data_ptr(),
    )
    positions, types = position.shape[0], token_type.shape[0]
    grad_word = _sum_by_key(grad_sum, word_keys, word.shape[0], word.dtype)
    grad_pairs = _sum_by_key(grad_sum, pair_keys, positions * types, torch.float32).view(positions, types, cols)
    grad_position, grad_token_type = (grad_pairs.sum(axis).to(word.dtype) for axis in (1, 0))
    return grad_word, grad_position, grad_token_type, grad_weight, grad_bias


def _contiguous(*ids_and_tables: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Three ids and three tables -> a table and its ids, three times."""
    tensors = [t.contiguous() for t in ids_and_tables]
    return list(zip(tensors[3:], tensors[:3], strict=True))


def _described(tables: list[tuple[Tensor, Tensor]]) -> tuple[tuple[int, int, int], ...]:
    return tuple((table.data_ptr(), table.shape[0], ids.data_ptr()) for table, ids in tables)


def _sum_by_key(values: Tensor, keys: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """`(rows, E)`: for each row the sum of the values `(T, E)` whose key, int32 `(T,)`, is that row."""
    keys, order = keys.sort(stable=True)
    out = torch.empty(rows, values.shape[1], dtype=dtype, device=values.device)
    cuda.extension.sum_by_key(
        *cuda.launch(values),
        cuda.code(values),
        cuda.code(out),
        *values.shape,
        rows,
        keys.data_ptr(),
        order.data_ptr(),
        values.data_ptr(),
        out.data_ptr(),
    )
    return out
