"""BERT's embeddings on packed tokens: the sum of three tables' rows, layer norm and dropout in one pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import reference
from ..backends.arguments import (
    EmbeddingLayerNormGrads,
    EmbeddingLayerNormInputs,
    EmbeddingLayerNormResults,
    EmbeddingLayerNormSaved,
)
from ..backends.backend import Backend
from .checks import check_indices, check_probability, check_same_device, check_shape
from .custom import Halves
from .declare import Arguments, declare
from .dispatch import choose
from .seeds import draw_seed

_OP = "embedding_layer_norm"


def embedding_layer_norm(
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor,
    word: Tensor,
    position: Tensor,
    token_type: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    padding_id: int | None = None,
    dropout_p: float = 0.0,
    eps: float = 1e-12,
    backend: str | None = None,
) -> Tensor:
    """`dropout(LayerNorm(word[input_ids] + position[position_ids] + token_type[token_type_ids]))`.

    Args:
        input_ids, position_ids, token_type_ids: int64 `(T,)`.
        word, position, token_type: `(rows, E)`, any floating dtype.
        weight, bias: `(E,)` of the layer norm.
        padding_id: the row of `word` that gets no gradient, 0 or more, as `torch.nn.Embedding`'s `padding_idx`.
        dropout_p: of the result; applied whenever it is above 0.
        eps: of the layer norm.
        backend: one of `ops.backends("embedding_layer_norm")`; default: the best that takes these tensors.

    Returns:
        `(T, E)`.

    Raises:
        ValueError: shapes, devices or probabilities do not fit together.
        IndexError: an id is outside its table (on the CPU).
        TypeError: ids are not int64.
        BackendUnavailableError: the backend that was asked for cannot run this call.
    """
    if word.dim() != 2:
        raise ValueError(f"{_OP}: word has shape {tuple(word.shape)}, expected (vocabulary, hidden size)")
    size = word.shape[1]
    ids = {"input_ids": input_ids, "position_ids": position_ids, "token_type_ids": token_type_ids}
    tables = {"word": word, "position": position, "token_type": token_type}
    for (name, own), (table_name, table) in zip(ids.items(), tables.items(), strict=True):
        check_shape(_OP, table_name, table, (None, size), f"(rows, {size}) as word")
        check_indices(_OP, name, own, input_ids.numel())
    for name, tensor in (("weight", weight), ("bias", bias)):
        check_shape(_OP, name, tensor, (size,), f"({size},) to fit word")
    if padding_id is not None and not 0 <= padding_id < word.shape[0]:
        raise ValueError(f"{_OP}: padding_id is {padding_id}, expected a row of word, 0 to {word.shape[0] - 1}")
    check_probability(_OP, "dropout_p", dropout_p)
    check_same_device(_OP, **ids, **tables, weight=weight, bias=bias)
    tensors = (*ids.values(), *tables.values(), weight, bias)
    run = choose(_OP, backend, *tensors, size=tensors[0].numel())
    return run(*tensors, padding_id=padding_id, dropout_p=dropout_p, eps=eps)


def _run_compiled(
    compiled: Callable[..., tuple[Tensor, ...]],
    backend: Backend,
    *tensors: Tensor,
    padding_id: int | None,
    dropout_p: float,
    eps: float,
) -> Tensor:
    seed = draw_seed(dropout_p, tensors[0].device)
    padding_id = -1 if padding_id is None else padding_id
    return compiled(*tensors, seed, padding_id, dropout_p, eps)[0]


def _shapes(backend: Backend) -> Halves:
    def forward(inputs: EmbeddingLayerNormInputs) -> EmbeddingLayerNormResults:
        tokens, word = inputs.input_ids.shape[0], inputs.word
        statistics = (word.new_empty(tokens, dtype=torch.float32) for _ in range(2))
        return EmbeddingLayerNormResults(word.new_empty((tokens, word.shape[1])), *statistics)

    def backward(grad_out: Tensor, saved: EmbeddingLayerNormSaved) -> EmbeddingLayerNormGrads:
        like = (saved.word, saved.position, saved.token_type, saved.weight, saved.weight)
        return EmbeddingLayerNormGrads(*(t.new_empty(t.shape) for t in like))

    return Halves(forward, backward)


declare(
    _OP,
    Arguments(EmbeddingLayerNormInputs, EmbeddingLayerNormResults, EmbeddingLayerNormSaved, EmbeddingLayerNormGrads),
    reference=reference.embedding_layer_norm,
    run=_run_compiled,
    shapes=_shapes,
)
