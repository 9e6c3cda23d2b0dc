"""BERT's self-attention sublayer on packed tokens: one autograd node."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .. import reference
from ..backends import cpu, cuda, triton
from ..units import indices
from .autocast import autocast
from .checks import check_active, check_gates, check_offsets, check_probability, check_same_device, check_shape
from .custom import Backend, Halves, define
from .dispatch import choose, register
from .flops import active_units, attention_flops
from .seeds import draw_seed

_OP = "attention_sublayer"


def attention_sublayer(
    x: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    w_q: Tensor,
    b_q: Tensor,
    w_k: Tensor,
    b_k: Tensor,
    w_v: Tensor,
    b_v: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    head_size: int,
    active_heads: Tensor | None = None,
    head_gates: Tensor | None = None,
    first_token_only: bool = False,
    attention_dropout_p: float = 0.0,
    dropout_p: float = 0.0,
    eps: float = 1e-12,
    backend: str | None = None,
) -> Tensor:
    """`dropout_add_layer_norm(attention(q, k, v) w_out^T + b_out, x, norm_weight, norm_bias)` on the active heads.

    q, k and v are linear layers of x, cut into heads of `head_size` rows.

    Args:
        x: `(T, E)`, any floating dtype: packed sequences.
        cu_seqlens, max_seqlen: as in `attention`.
        w_q, w_k, w_v: `(H * head_size, E)`; b_q, b_k, b_v: `(H * head_size,)`.
        w_out: `(E, H * head_size)`; b_out: `(E,)`.
        norm_weight, norm_bias: `(E,)`.
        head_size: rows of a head.
        active_heads: the heads to compute, as sorted int64 indices or as bool `(H,)`; None for all. The gradients of
            the others are 0. See `feed_forward_sublayer` on which to use.
        head_gates: float32 (or float64) `(H,)`, one for every head, active or not.
        first_token_only: return the first token of each sequence, and compute no other query. Then no sequence may
            be empty.
        attention_dropout_p: of the attention weights; applied whenever it is above 0.
        dropout_p: of the output projection's result, likewise.
        eps: of the layer norm.
        backend: one of `ops.backends("attention_sublayer")`; default: the best that takes these tensors. `cuda` takes
            float16 and bfloat16 weights, or autocast; heads and sequences as in `attention`; indices, and no mask.

    Returns:
        `(T, E)`, or `(B, E)` when `first_token_only`.

    Raises:
        ValueError: shapes, devices or probabilities do not fit together.
        TypeError: gates are in half precision, `active_heads` are neither int64 nor bool, or `cu_seqlens` is not int32.
        IndexError: an index is outside the units (on the CPU).
        RuntimeError: the backend that was asked for cannot run this call.
    """
    if w_q.dim() != 2 or w_q.shape[0] % head_size:
        raise ValueError(f"{_OP}: w_q has shape {tuple(w_q.shape)}, expected (heads * {head_size}, hidden size)")
    size, hidden = w_q.shape
    heads = size // head_size
    check_shape(_OP, "x", x, (None, hidden), f"(tokens, {hidden}) to fit w_q")
    for name, tensor in (("w_k", w_k), ("w_v", w_v)):
        check_shape(_OP, name, tensor, (size, hidden), f"({size}, {hidden}) as w_q")
    for name, tensor in (("b_q", b_q), ("b_k", b_k), ("b_v", b_v)):
        check_shape(_OP, name, tensor, (size,), f"({size},) to fit w_q")
    check_shape(_OP, "w_out", w_out, (hidden, size), f"({hidden}, {size}) to fit w_q")
    for name, tensor in (("b_out", b_out), ("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        check_shape(_OP, name, tensor, (hidden,), f"({hidden},) to fit w_out")
    check_offsets(_OP, "cu_seqlens", cu_seqlens, x.shape[0], max_seqlen, least=int(first_token_only))
    check_active(_OP, "active_heads", active_heads, heads)
    check_gates(_OP, "head_gates", head_gates, heads)
    check_probability(_OP, "attention_dropout_p", attention_dropout_p)
    check_probability(_OP, "dropout_p", dropout_p)
    weights = {"w_q": w_q, "b_q": b_q, "w_k": w_k, "b_k": b_k, "w_v": w_v, "b_v": b_v, "w_out": w_out, "b_out": b_out}
    weights |= {"norm_weight": norm_weight, "norm_bias": norm_bias}
    units = {"active_heads": active_heads, "head_gates": head_gates}
    check_same_device(_OP, x=x, cu_seqlens=cu_seqlens, **weights, **units)
    tensors = (x, cu_seqlens, *weights.values(), *units.values())
    run = choose(_OP, backend, *tensors, size=x.shape[0], head_size=head_size, max_seqlen=max_seqlen)
    return run(
        x,
        cu_seqlens,
        max_seqlen,
        *weights.values(),
        **units,
        head_size=head_size,
        first_token_only=first_token_only,
        attention_dropout_p=attention_dropout_p,
        dropout_p=dropout_p,
        eps=eps,
    )


def _run_compiled(
    compiled: Callable[..., tuple[Tensor, ...]],
    x: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *weights: Tensor,
    active_heads: Tensor | None,
    head_gates: Tensor | None,
    head_size: int,
    first_token_only: bool,
    attention_dropout_p: float,
    dropout_p: float,
    eps: float,
) -> Tensor:
    seeds = draw_seed(attention_dropout_p, x.device), draw_seed(dropout_p, x.device)
    options = (head_size, first_token_only, attention_dropout_p, dropout_p, eps)
    *linears, norm_weight, norm_bias = weights
    weights = (*autocast(*linears), norm_weight, norm_bias)
    return compiled(x, cu_seqlens, max_seqlen, *weights, active_heads, head_gates, *seeds, *options)[0]


# The dispatcher's side. Under autocast x and the norm are float32 and the eight others in autocast's dtype, which is
# that of the products.


def _forward_shapes(projections, x, cu_seqlens, max_seqlen, w_q, *inputs):
    active_heads, head_size, first_token_only = inputs[9], inputs[13], inputs[14]
    tokens, hidden = x.shape
    heads = w_q.shape[0] // head_size if active_heads is None else active_heads.shape[0]
    queries = cu_seqlens.shape[0] - 1 if first_token_only else tokens
    context = w_q.new_empty((queries, heads, head_size))
    logsumexp, *statistics = (x.new_empty(s, dtype=torch.float32) for s in ((heads, queries), (queries,), (queries,)))
    kept = (w_q.new_empty(size) for size in projections(queries, tokens, heads, head_size, first_token_only))
    return x.new_empty((queries, hidden)), *kept, context, logsumexp, w_q.new_empty((queries, hidden)), *statistics


def _cpu_projections(queries, tokens, heads, head_size, first_token_only):
    return (queries, heads, head_size), (tokens, heads, head_size), (tokens, heads, head_size)


def _gpu_projections(queries, tokens, heads, head_size, first_token_only):
    """One product makes q, k and v of a head side by side; with other queries than keys, one makes k and v."""
    if first_token_only:
        return (queries, heads, head_size), (tokens, heads, 2, head_size), (0,)
    return (0,), (tokens, heads, 3, head_size), (0,)


def _backward_shapes(grad_out, *inputs):
    x, w_q, norm_weight, head_gates = inputs[8], inputs[11], inputs[15], inputs[17]
    size, hidden = w_q.shape
    projection = (w_q.shape, (size,))
    products = (w_q.new_empty(s) for s in (*projection * 3, (hidden, size), (hidden,)))
    norm = (norm_weight.new_empty(hidden) for _ in range(2))
    grad_gates = x.new_empty(0 if head_gates is None else size // inputs[20], dtype=torch.float32)
    return x.new_empty(x.shape), *products, *norm, grad_gates


def _forward_flops(x, cu_seqlens, max_seqlen, w_q, *inputs, out_val=None):
    active_heads, head_size, first_token_only = inputs[9], inputs[13], inputs[14]
    return _flops(1, 2, x, cu_seqlens, max_seqlen, w_q, active_heads, head_size, first_token_only)


def _backward_flops(grad_out, *inputs, out_val=None):
    x, cu_seqlens, max_seqlen, w_q = inputs[8:12]
    active_heads, head_size, first_token_only = inputs[16], inputs[20], inputs[21]
    return _flops(2, 5, x, cu_seqlens, max_seqlen, w_q, active_heads, head_size, first_token_only)


def _flops(linear, products, x, cu_seqlens, max_seqlen, w_q, active_heads, head_size, first_token_only):
    """Of the projections `linear` times, and of so many of the attention's products."""
    (size, hidden), sequences = w_q.shape, cu_seqlens.shape[0] - 1
    size = active_units(active_heads, size // head_size) * head_size
    queries = sequences if first_token_only else x.shape[0]
    asking = torch.arange(sequences + 1) if first_token_only else None
    attention = attention_flops(cu_seqlens, max_seqlen, asking, 1, size, products)
    return linear * 2 * hidden * size * (2 * x.shape[0] + 2 * queries) + attention


def _save(ctx, inputs, output):
    x, cu_seqlens, ctx.max_seqlen, w_q, _, w_k, _, w_v, _, w_out, _, norm_weight, _, *rest = inputs
    *units_and_seeds, head_size, first_token_only, attention_dropout_p, dropout_p, _ = rest
    ctx.options = (head_size, first_token_only, attention_dropout_p, dropout_p)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], x, cu_seqlens, w_q, w_k, w_v, w_out, norm_weight, *units_and_seeds)


def _gradients(ctx, backward, grad_out, *others):
    saved = ctx.saved_tensors
    head_gates = saved[-3]
    grad_x, *grads, grad_gates = backward(grad_out, *saved[:10], ctx.max_seqlen, *saved[10:], *ctx.options)
    return grad_x, None, None, *grads, None, None if head_gates is None else grad_gates, *[None] * 7


_OPTIONS = (
    "Tensor? active_heads, Tensor? head_gates, Tensor? attention_seed, Tensor? seed, SymInt head_size,"
    " bool first_token_only, float attention_dropout_p, float dropout_p"
)
#: q, k and v as the backend keeps them, and the attention's result.
_RESULTS = "Tensor q, Tensor k, Tensor v, Tensor context, Tensor logsumexp, Tensor h, Tensor mean, Tensor rstd"
_compiled = define(
    _OP,
    (
        "(Tensor x, Tensor cu_seqlens, SymInt max_seqlen, Tensor w_q, Tensor b_q, Tensor w_k, Tensor b_k, Tensor w_v,"
        f" Tensor b_v, Tensor w_out, Tensor b_out, Tensor norm_weight, Tensor norm_bias, {_OPTIONS}, float eps)"
        f" -> (Tensor out, {_RESULTS})",
        f"(Tensor grad_out, {_RESULTS}, Tensor x, Tensor cu_seqlens, SymInt max_seqlen, Tensor w_q, Tensor w_k,"
        f" Tensor w_v, Tensor w_out, Tensor norm_weight, {_OPTIONS}) -> (Tensor grad_x, Tensor grad_w_q,"
        " Tensor grad_b_q, Tensor grad_w_k, Tensor grad_b_k, Tensor grad_w_v, Tensor grad_b_v, Tensor grad_w_out,"
        " Tensor grad_b_out, Tensor grad_norm_weight, Tensor grad_norm_bias, Tensor grad_gates)",
    ),
    backends={
        "cpu": Backend(
            Halves(cpu.attention_sublayer.forward, cpu.attention_sublayer.backward),
            Halves(partial(_forward_shapes, _cpu_projections), _backward_shapes),
        ),
        "cuda": Backend(
            Halves(cuda.attention_sublayer.forward, cuda.attention_sublayer.backward),
            Halves(partial(_forward_shapes, _gpu_projections), _backward_shapes),
        ),
        "triton": Backend(
            Halves(*triton.kernels(_OP)), Halves(partial(_forward_shapes, _gpu_projections), _backward_shapes)
        ),
    },
    save=_save,
    gradients=_gradients,
    flops=Halves(_forward_flops, _backward_flops),
)


def _run_on_cpu(*inputs, active_heads: Tensor | None, **options) -> Tensor:
    return _run_compiled(_compiled["cpu"], *inputs, active_heads=indices(active_heads), **options)


register(_OP, "reference", reference.attention_sublayer)
register(_OP, "cpu", _run_on_cpu, unavailable=cpu.unavailable, refuses=cpu.refuses_products)
register(
    _OP,
    "cuda",
    partial(_run_compiled, _compiled["cuda"]),
    **cuda.AVAILABILITY | {"refuses": cuda.attention_sublayer.refuses},
)
register(_OP, "triton", partial(_run_compiled, _compiled["triton"]), **triton.AVAILABILITY)
