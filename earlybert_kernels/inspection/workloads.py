"""What is compiled to be inspected: the Triton backend's ops, called as real BERTs call them, on tensors without data.

The kernels' configurations stand where they are launched, and nowhere else: what these calls would launch is recorded.
A workload goes through all combinations (`everything`), or through a selection that has each tile and each branch of
a kernel, with dropout, gates and masks, which need the most registers.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends.arguments import (
    AttentionSublayerInputs,
    AttentionSublayerSaved,
    FeedForwardSublayerInputs,
    FeedForwardSublayerSaved,
)
from ..backends.triton import attention as attention_op
from ..backends.triton import attention_sublayer as attention_sublayer_op
from ..backends.triton import dropout_add_layer_norm as dropout_add_layer_norm_op
from ..backends.triton import embedding_layer_norm as embedding_layer_norm_op
from ..backends.triton import feed_forward as feed_forward_op
from ..backends.triton import feed_forward_sublayer as feed_forward_sublayer_op
from ..backends.triton import masked_lm_loss as masked_lm_loss_op
from ..backends.triton import optimizer_step as optimizer_step_op
from ..backends.triton.launch import Launch, recording

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
#: Hidden size, neurons, heads and head size.
MINILM, BASE, LARGE = (384, 1536, 12, 32), (768, 3072, 12, 64), (1024, 4096, 16, 64)
#: Tokens of a batch. What is compiled does not depend on their number, but a choice of tiles may.
FEW, MANY = 1003, 16411
EPS = 1e-12

#: By op: what calls it; takes whether to go through everything.
WORKLOADS: dict[str, Callable[[bool], None]] = {}


def launches(op: str, architecture: int, everything: bool) -> list[Launch]:
    """What the workload of an op would launch on an architecture."""
    with recording(architecture) as recorded:
        WORKLOADS[op](False)
        if everything:
            WORKLOADS[op](True)
    return recorded


def _workload(calls: Callable[[bool], None]) -> Callable[[bool], None]:
    WORKLOADS[calls.__name__] = calls
    return calls


def _empty(*shape: int, dtype: torch.dtype = FP32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _seed(dropout_p: float) -> Tensor | None:
    return _empty(dtype=torch.int64) if dropout_p else None


def _saved(cls: type[NamedTuple], inputs: NamedTuple, results: NamedTuple) -> Any:
    """What an op saves of its inputs and results."""
    values = inputs._asdict() | results._asdict()
    return cls._make(values[name] for name in cls._fields)


def _mask(units: int) -> Tensor:
    return _empty(units, dtype=torch.bool)


def _offsets(sequences: int) -> Tensor:
    return _empty(sequences + 1, dtype=torch.int32)


@_workload
def attention(everything: bool) -> None:
    """Lengths on both sides of every tile's keys; keys that are divided up; first tokens that ask only; windows."""
    options: dict[str, Any] = {"dropout_p": 0.1, "gated": True, "masked": True}
    if everything:
        cases = product((BF16, FP16, FP32), (32, 64, 80, 96, 128), (16, 32, 64, 128, 256, 512, 8192))
        for (dtype, size, length), first_only in product(cases, (False, True)):
            for dropout_p, gated, masked in product((0.0, 0.1), (False, True), (False, True)):
                _attention(dtype, size, length, first_only, dropout_p, gated, masked)
        return
    for size, length in product((64, 128), (16, 32, 64, 128, 256, 512)):
        _attention(BF16, size, length, **options)
    for size, length in ((64, 16), (64, 32), (64, 64), (64, 512), (128, 16), (128, 512)):
        _attention(FP32, size, length, **options)
    _attention(BF16, 64, 8192, **options)
    _attention(BF16, 64, 128, first_only=True, **options)
    _attention(BF16, 32, 128, **options)
    _attention(FP16, 64, 512, **options)
    _attention(BF16, 64, 128)
    _attention(BF16, 64, 512, dropout_p=0.1)
    _attention(BF16, 64, 128, masked=True, saves=False)
    for length in (64, 128, 512, 8192):
        _attention(BF16, 64, length, window=64)
    _attention(FP32, 64, 128, window=64)


def _attention(
    dtype: torch.dtype,
    size: int,
    length: int,
    first_only: bool = False,
    dropout_p: float = 0.0,
    gated: bool = False,
    masked: bool = False,
    window: int | None = None,
    saves: bool = True,
) -> None:
    """Forward, and backward if that `saves` for it, of 12 heads, in as many sequences of a length as a batch has: one
    if it is very long.
    """
    heads, sequences = 12, max(16384 // length, 32) if length < 8192 else 1
    keys, queries = sequences * length, sequences if first_only else sequences * length
    q, k, v = (_empty(tokens, heads, size, dtype=dtype) for tokens in (queries, keys, keys))
    packing = (_offsets(sequences), length, _offsets(sequences), 1 if first_only else length)
    gates, mask = _empty(heads) if gated else None, _mask(heads) if masked else None
    inputs = (q, k, v, *packing, mask, gates, _seed(dropout_p), dropout_p, size**-0.5, window)
    out, logsumexp = attention_op.forward(*inputs, saves)
    if saves:
        attention_op.backward(torch.empty_like(out), out, logsumexp, *inputs)


@_workload
def attention_sublayer(everything: bool) -> None:
    """Dense, gated and masked; masks of heads that the host does not know take the products to our kernels."""
    if everything:
        cases = product((MINILM, BASE, LARGE), (BF16, FP16, FP32), (FEW, MANY))
        for (shape, dtype, tokens), first_only in product(cases, (False, True)):
            for dropout_p, gated, masked in product((0.0, 0.1), (False, True), (False, True)):
                _attention_sublayer(shape, dtype, tokens, first_only, dropout_p, gated, masked)
        _attention_sublayer(BASE, BF16, MANY, masked=True, stream=FP32)
        return
    options: dict[str, Any] = {"dropout_p": 0.1, "gated": True, "masked": True}
    for tokens in (FEW, MANY):
        _attention_sublayer(BASE, BF16, tokens, **options)
    _attention_sublayer(BASE, BF16, FEW, first_only=True, **options)
    _attention_sublayer(BASE, BF16, MANY, stream=FP32, **options)


def _attention_sublayer(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    tokens: int,
    first_only: bool = False,
    dropout_p: float = 0.0,
    gated: bool = False,
    masked: bool = False,
    stream: torch.dtype | None = None,
) -> None:
    """Forward and backward of sequences of up to 128 tokens; `stream` is the dtype between sublayers."""
    hidden, _, heads, size = shape
    inner, sequences, stream = heads * size, -(-tokens // 128), stream or dtype
    projection = (_empty(inner, hidden, dtype=dtype), _empty(inner, dtype=dtype))
    w_out, b_out = _empty(hidden, inner, dtype=dtype), _empty(hidden, dtype=dtype)
    norm = (_empty(hidden, dtype=stream), _empty(hidden, dtype=stream))
    units = (_mask(heads) if masked else None, _empty(heads) if gated else None, _seed(dropout_p), _seed(dropout_p))
    options = (size, first_only, dropout_p, dropout_p)
    x, packing = _empty(tokens, hidden, dtype=stream), (_offsets(sequences), 128)
    given = (x, *packing, *projection * 3, w_out, b_out, *norm, *units, *options, EPS, None, True, False, True)
    inputs = AttentionSublayerInputs._make(given)
    results = attention_sublayer_op.forward(inputs)
    attention_sublayer_op.backward(torch.empty_like(results.out), _saved(AttentionSublayerSaved, inputs, results))


@_workload
def dropout_add_layer_norm(everything: bool) -> None:
    """The widths of BERTs, one that is no multiple of 4, and one of a single tile; rows as wide as x, or wider."""
    if everything:
        dtypes = ((BF16, BF16), (BF16, FP32), (FP16, FP16), (FP16, FP32), (FP32, FP32))
        for width, pair, dropout_p in product((48, 384, 761, 768, 1024, 2048), dtypes, (0.0, 0.1)):
            _dropout_add_layer_norm(width, *pair, dropout_p)
        return
    for width in (384, 761, 768, 1024):
        _dropout_add_layer_norm(width, BF16, BF16, 0.1)
    for dtype in (BF16, FP32):
        _dropout_add_layer_norm(768, dtype, FP32, 0.1)
    for saves in (True, False):
        _dropout_add_layer_norm(768, BF16, BF16, 0.0, saves)


def _dropout_add_layer_norm(
    width: int, dtype: torch.dtype, stream: torch.dtype, dropout_p: float, saves: bool = True
) -> None:
    x, residual = _empty(MANY, width, dtype=dtype), _empty(MANY, width, dtype=stream)
    weight, bias, seed = _empty(width, dtype=stream), _empty(width, dtype=stream), _seed(dropout_p)
    forward = (x, residual, weight, bias, seed, dropout_p, EPS)
    out, mean, rstd, _ = dropout_add_layer_norm_op.forward(*forward, saves, cast_out=True)
    if not saves:
        return
    grad_out = torch.empty_like(out)
    dropout_add_layer_norm_op.backward(grad_out, x, residual, weight, mean, rstd, seed, dropout_p, cast_residual=True)


@_workload
def embedding_layer_norm(everything: bool) -> None:
    """The widths of BERTs, and one that is no multiple of 4."""
    if everything:
        for case in product((48, 384, 761, 768, 1024), (BF16, FP16, FP32), (0.0, 0.1)):
            _embedding_layer_norm(*case)
        return
    for width, dtype in ((384, BF16), (761, BF16), (1024, BF16), (768, BF16), (768, FP32)):
        _embedding_layer_norm(width, dtype, 0.1)
    _embedding_layer_norm(768, BF16, 0.0, saves=False)


def _embedding_layer_norm(width: int, dtype: torch.dtype, dropout_p: float, saves: bool = True) -> None:
    words, positions, types = (_empty(MANY, dtype=torch.int64) for _ in range(3))
    word, position, token_type = (_empty(rows, width, dtype=dtype) for rows in (30522, 512, 2))
    weight, bias, seed = _empty(width, dtype=dtype), _empty(width, dtype=dtype), _seed(dropout_p)
    given = (words, positions, types, word, position, token_type, weight)
    out, mean, rstd = embedding_layer_norm_op.forward(*given, bias, seed, 0, dropout_p, EPS, saves)
    if saves:
        embedding_layer_norm_op.backward(torch.empty_like(out), mean, rstd, *given, seed, 0, dropout_p)


@_workload
def feed_forward(everything: bool) -> None:
    """Each of the products' tiles; neurons that the host does not know, and a compact number of them."""
    if everything:
        cases = product((MINILM, BASE, LARGE), (BF16, FP16, FP32), (FEW, MANY), ("gelu", "gelu_tanh", "relu"))
        for (shape, dtype, tokens, activation), gated, masked in product(cases, (False, True), (False, True)):
            for neurons in (shape[1], shape[1] * 3 // 5):
                _feed_forward(shape[0], neurons, dtype, tokens, activation, gated, masked)
        return
    for tokens, masked in product((FEW, MANY), (False, True)):
        _feed_forward(768, 3072, BF16, tokens, gated=masked, masked=masked)
    for tokens, masked in ((FEW, False), (MANY, False), (MANY, True)):
        _feed_forward(768, 1843, BF16, tokens, masked=masked)
    _feed_forward(768, 3072, FP32, MANY)
    _feed_forward(768, 3072, FP32, FEW, gated=True, masked=True)
    _feed_forward(768, 3072, BF16, MANY, "gelu_tanh")
    _feed_forward(768, 3072, BF16, MANY, masked=True, saves=False)


def _feed_forward(
    hidden: int,
    neurons: int,
    dtype: torch.dtype,
    tokens: int,
    activation: str = "gelu",
    gated: bool = False,
    masked: bool = False,
    saves: bool = True,
) -> None:
    x, w_in, w_out = (_empty(*s, dtype=dtype) for s in ((tokens, hidden), (neurons, hidden), (hidden, neurons)))
    b_in, b_out = _empty(neurons, dtype=dtype), _empty(hidden, dtype=dtype)
    units = (_mask(neurons) if masked else None, _empty(neurons) if gated else None, activation)
    out, kept = feed_forward_op.forward(x, w_in, b_in, w_out, b_out, *units, saves)
    if saves:
        feed_forward_op.backward(torch.empty_like(out), kept, x, w_in, w_out, *units)


@_workload
def feed_forward_sublayer(everything: bool) -> None:
    """What it has beyond its parts: a product that is added to the gradient of the residual, of either dtype."""
    tokens = (FEW, MANY)
    if everything:
        streams = ((BF16, BF16), (BF16, FP32), (FP16, FP16), (FP16, FP32), (FP32, FP32))
        for shape, pair, count, masked in product((MINILM, BASE, LARGE), streams, tokens, (False, True)):
            _feed_forward_sublayer(shape, *pair, count, masked)
        return
    for pair, count in (*product(((BF16, BF16), (BF16, FP32)), tokens), ((FP32, FP32), FEW)):
        _feed_forward_sublayer(BASE, *pair, count, masked=True)


def _feed_forward_sublayer(
    shape: tuple[int, int, int, int], dtype: torch.dtype, stream: torch.dtype, tokens: int, masked: bool
) -> None:
    hidden, neurons, _, _ = shape
    w_in, w_out = _empty(neurons, hidden, dtype=dtype), _empty(hidden, neurons, dtype=dtype)
    b_in, b_out = _empty(neurons, dtype=dtype), _empty(hidden, dtype=dtype)
    x, norm = _empty(tokens, hidden, dtype=stream), (_empty(hidden, dtype=stream), _empty(hidden, dtype=stream))
    units = (_mask(neurons) if masked else None, None, _seed(0.1), "gelu", 0.1)
    given = (x, w_in, b_in, w_out, b_out, *norm, *units, EPS, None, True, False, True)
    inputs = FeedForwardSublayerInputs._make(given)
    results = feed_forward_sublayer_op.forward(inputs)
    feed_forward_sublayer_op.backward(torch.empty_like(results.out), _saved(FeedForwardSublayerSaved, inputs, results))


@_workload
def optimizer_step(everything: bool) -> None:
    """Weights; biases, which are often not adapted; gates, which are not either, and have a penalty."""
    cases = product((BF16, FP16, FP32), (True, False), (0.0, 1e-4))
    for dtype, adapt, l1 in cases if everything else product((BF16, FP32), (True, False), (1e-4,)):
        shapes = ((3072, 768), (768,))
        params, grads = ([_empty(*shape, dtype=dtype) for shape in shapes] for _ in range(2))
        exp_avgs, exp_avg_sqs = ([_empty(*shape) for shape in shapes] for _ in range(2))
        steps, options = [_empty(), _empty()], dict[str, Any](adapt=adapt, l1=l1)
        options |= {"lr": _empty(), "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01}
        optimizer_step_op.optimizer_step(params, grads, exp_avgs, exp_avg_sqs, steps, **options)


@_workload
def masked_lm_loss(everything: bool) -> None:
    """BERT's vocabulary; a row of logits is gone through in pieces of one size."""
    if everything:
        for case in product((384, 761, 768, 1024), (BF16, FP16, FP32), (False, True)):
            _masked_lm_loss(*case)
        return
    for case in ((384, BF16, True), (768, BF16, True), (1024, BF16, True), (768, FP32, True)):
        _masked_lm_loss(*case)


def _masked_lm_loss(width: int, dtype: torch.dtype, biased: bool) -> None:
    hidden, weight = _empty(MANY, width, dtype=dtype), _empty(30522, width, dtype=dtype)
    labels, rows = _empty(MANY, dtype=torch.int64), _empty(MANY * 15 // 100, dtype=torch.int64)
    bias = _empty(30522, dtype=dtype) if biased else None
    loss, grad_logits = masked_lm_loss_op.forward(hidden, labels, rows, weight, bias, False)
    masked_lm_loss_op.backward(torch.empty_like(loss), grad_logits, hidden, rows, weight, False)
