"""Every backend of the ops against the reference in float64, on shapes, masks and memory layouts drawn at random.

The shapes are small: what is looked for are first and last elements, tails of vectors, and strides.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import earlybert_kernels as ek
from earlybert_kernels import reference
from earlybert_kernels.backends import cuda
from earlybert_kernels.ops.seeds import draw_seed
from earlybert_kernels.reference.counter_rng import keep_mask, kept_scale
from tests.helpers import oracles
from tests.helpers.guarded import poisoned_memory

# The same examples in every run: a test that fails for one reader fails for all.
examples = settings(max_examples=60, deadline=None, derandomize=True)

sizes = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 31, 32, 33, 37, 64, 67])
seeds = st.integers(0, 2**32 - 1)


def _misaligned(t):
    return torch.empty(t.numel() + 1)[1:].view(t.shape).copy_(t)


def _transposed(t):
    return t.permute(*range(t.dim())[::-1]).contiguous().permute(*range(t.dim())[::-1])


def _strided(t):
    return t.repeat_interleave(2, -1)[..., ::2]


def _rows_apart(t):
    return torch.stack([t, torch.full_like(t, float("nan"))], 1)[:, 0]  # what lies between is not to be read


#: The same values elsewhere in memory.
LAYOUTS = {
    "contiguous": torch.Tensor.contiguous,
    "misaligned": _misaligned,
    "transposed": _transposed,
    "strided": _strided,
    "rows apart": _rows_apart,
}
layouts = st.sampled_from(sorted(LAYOUTS))


@st.composite
def masks(draw, units):
    """None, or which of the units are computed: all, none or some."""
    chosen = st.lists(st.booleans(), min_size=units, max_size=units).map(torch.tensor)
    return draw(st.none() | chosen | st.just(torch.zeros(units, dtype=torch.bool)))


@st.composite
def made(draw, *shapes):
    """A random tensor of each shape, and one of layout and of gradient of the output."""
    generator = torch.Generator().manual_seed(draw(seeds))
    return [LAYOUTS[draw(layouts)](torch.randn(shape, generator=generator)) for shape in shapes]


@st.composite
def upstream(draw, shape):
    """A gradient of the output; one from sum() has no strides."""
    (grad,) = draw(made(shape))
    return draw(st.sampled_from([grad, torch.ones(()).expand(shape)]))


def results(function, tensors, grad_out, dtype=None):
    """Output and gradients, in `dtype` where one is given."""
    leaves = [(t if dtype is None else t.to(dtype)).detach().requires_grad_() for t in tensors]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_out.to(out.dtype))]


def assert_close(ours, plain, truth, floor):
    """At most twice the error of plain PyTorch in float32, plus 16 roundings of the largest value or of `floor`."""
    for number, (a, b, exact) in enumerate(zip(ours, plain, truth, strict=True)):
        if not exact.numel():
            continue
        allowed = 16 * torch.finfo(torch.float32).eps * max(exact.abs().max(), floor)
        assert (a - exact).abs().max() <= 2 * (b - exact).abs().max() + allowed, number


def backends(op):
    """Those that take tensors on the CPU."""
    return [name for name in ek.ops.backends(op) if name not in ("cuda", "triton")]


def emulated():
    """Whether CUDA's kernels run on the CPU."""
    return cuda.EMULATED and cuda.unavailable() is None


@pytest.mark.parametrize("backend", backends("attention"))
@examples
@given(data=st.data())
def test_attention(backend, data):
    heads, size = data.draw(st.integers(1, 4)), data.draw(sizes)
    lengths = data.draw(st.lists(st.just(0) | st.integers(1, 70), min_size=1, max_size=4).filter(any))
    lengths_q = data.draw(st.just(lengths) | st.tuples(*(st.integers(0, n) for n in lengths)).filter(any))
    tokens, tokens_q = sum(lengths), sum(lengths_q)
    shapes = [(tokens_q, heads, size), (tokens, heads, size), (tokens, heads, size), (heads,)]
    q, k, v, gates = data.draw(made(*shapes))
    grad_out = data.draw(upstream((tokens_q, heads, size)))
    mask, gated = data.draw(masks(heads)), data.draw(st.booleans())
    dropout_p = data.draw(st.sampled_from([0.0, 0.3])) if backend != "reference" else 0.0  # whose masks are torch's
    seed, longest = data.draw(seeds), max(lengths) + data.draw(st.integers(0, 5))
    packing = {"cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).int(), "max_seqlen": longest}
    if lengths_q is not lengths:
        packing["cu_seqlens_q"] = torch.tensor([0, *lengths_q]).cumsum(0).int()
        packing["max_seqlen_q"] = max(lengths_q)

    def called(q, k, v, gates=None):
        return ek.ops.attention(
            q, k, v, **packing, head_mask=mask, head_gates=gates, dropout_p=dropout_p, backend=backend
        )

    torch.manual_seed(seed)
    drawn = draw_seed(dropout_p, q.device)
    keep = None if drawn is None else keep_mask(drawn, (heads, tokens_q, longest), dropout_p)
    kept = torch.ones(heads, dtype=torch.bool) if mask is None else mask

    def defined(q, k, v, gates=None):
        real = [(n, m) for n, m in zip(lengths, lengths_q, strict=True) if n]
        gates = kept.to(q.dtype) if gates is None else gates * kept
        return oracles.attention(q, k, v, *zip(*real, strict=True), gates=gates, keep=keep, dropout_p=dropout_p)

    tensors = [q, k, v, gates] if gated else [q, k, v]
    truth, plain = (results(defined, tensors, grad_out, dtype) for dtype in (torch.float64, torch.float32))
    # A masked head's gate would get a gradient from a mask that multiplies, but not from one that skips.
    for expected in (truth, plain):
        expected[4:] = [torch.where(kept, each, 0.0) for each in expected[4:]]
    # Gradients of scores are differences of values of this size, and exactly 0 where there is one key.
    weights = torch.einsum("qhd,khd->hqk", grad_out, v).abs().max() * size**-0.5 * kept_scale(dropout_p)
    differences = weights * max(1.0, gates.abs().max()) * max(q.abs().max(), k.abs().max())
    for t in (q, k, v):
        t[:, ~kept] = float("nan")
    gates[~kept] = float("nan")
    torch.manual_seed(seed)
    with poisoned_memory():
        ours = results(called, tensors, grad_out)
    assert_close(ours, plain, truth, differences)
    for result in ours[:4]:
        assert not result[:, ~kept].any()
    assert not any(each[~kept].any() for each in ours[4:])


@pytest.mark.parametrize("backend", [*backends("feed_forward"), *(["cuda"] if emulated() else [])])
@examples
@given(data=st.data())
def test_feed_forward(backend, data):
    tokens, hidden, neurons = data.draw(st.just(0) | sizes), data.draw(sizes), data.draw(sizes)
    shapes = [(tokens, hidden), (neurons, hidden), (neurons,), (hidden, neurons), (hidden,), (neurons,)]
    *weights, gates = data.draw(made(*shapes))
    grad_out = data.draw(upstream((tokens, hidden)))
    mask, gated = data.draw(masks(neurons)), data.draw(st.booleans())
    activation = data.draw(st.sampled_from(["gelu", "gelu_tanh", "relu"]))
    kept = torch.ones(neurons, dtype=torch.bool) if mask is None else mask

    def function(*tensors, **options):
        gates = tensors[5] if gated else None
        return ek.ops.feed_forward(*tensors[:5], neuron_gates=gates, activation=activation, **options)

    def called(*tensors):
        if backend != "cuda":
            return function(*tensors, neuron_mask=mask, backend=backend)
        active = None if mask is None else mask.nonzero().squeeze(1)  # which it takes in the place of a mask
        gates = tensors[5] if gated else None
        return torch.ops.earlybert.feed_forward.cuda(*tensors[:5], active, gates, activation, True)[0]

    def defined(x, w_in, b_in, w_out, b_out, *gates):
        cut = (x, w_in[kept], b_in[kept], w_out[:, kept], b_out, *(each[kept] for each in gates))
        return function(*cut, backend="reference")

    tensors = [*weights, gates] if gated else weights
    truth, plain = (results(defined, tensors, grad_out, dtype) for dtype in (torch.float64, torch.float32))
    _, w_in, b_in, w_out, _ = weights
    w_in[~kept] = b_in[~kept] = gates[~kept] = float("nan")
    w_out[:, ~kept] = float("nan")
    with poisoned_memory():
        ours = results(called, tensors, grad_out)
    assert_close(ours, plain, truth, 0.0)
    _, _, grad_w_in, grad_b_in, grad_w_out, _, *grad_gates = ours
    assert not any(grad[~kept].any() for grad in (grad_w_in, grad_b_in, grad_w_out.T, *grad_gates))


@pytest.mark.parametrize("backend", backends("dropout_add_layer_norm"))
@examples
@given(data=st.data())
def test_dropout_add_layer_norm(backend, data):
    rows = data.draw(st.lists(st.just(0) | sizes, max_size=2))
    shape = (*rows, data.draw(sizes))
    tensors = data.draw(made(shape, shape, shape[-1:], shape[-1:]))
    grad_out = data.draw(upstream(shape))
    dropout_p = data.draw(st.sampled_from([0.0, 0.3])) if backend != "reference" else 0.0  # whose masks are torch's
    eps, seed = data.draw(st.sampled_from([1e-12, 1e-5])), data.draw(seeds)

    torch.manual_seed(seed)
    drawn = draw_seed(dropout_p, tensors[0].device)
    keep = None if drawn is None else keep_mask(drawn, shape, dropout_p)

    def defined(*t):
        return reference.dropout_add_layer_norm(*t, dropout_p=dropout_p, eps=eps, keep=keep)

    def called(*t):
        return ek.ops.dropout_add_layer_norm(*t, dropout_p=dropout_p, eps=eps, backend=backend)

    truth, plain = (results(defined, tensors, grad_out, dtype) for dtype in (torch.float64, torch.float32))
    differences = 0.0
    if grad_out.numel():  # gradients of x are differences of values of this size
        x, residual, weight, _ = (t.double() for t in tensors)
        total = residual + x * (1.0 if keep is None else keep * kept_scale(dropout_p))
        rstd = (total.var(-1, keepdim=True, unbiased=False) + eps).rsqrt()
        differences = (rstd * grad_out * weight).abs().max() * kept_scale(dropout_p)
    torch.manual_seed(seed)
    with poisoned_memory():
        ours = results(called, tensors, grad_out)
    assert_close(ours, plain, truth, differences)
