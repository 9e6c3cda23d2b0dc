import pytest
import torch
import torch.nn.functional as F

import earlybert_kernels as ek
from tests.helpers import oracles

LENGTHS = [(1,), (7,), (3, 1, 8, 2), (5, 5, 5), (64, 1, 33), (2, 0, 3)]


def inputs(lengths, heads=3, size=4, dtype=torch.float64):
    tokens = sum(lengths)
    q, k, v = (torch.randn(tokens, heads, size, dtype=dtype, requires_grad=True) for _ in range(3))
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    return q, k, v, cu_seqlens, max(lengths)


def gradients(out, *tensors):
    generator = torch.Generator().manual_seed(9)
    weights = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    return torch.autograd.grad((out * weights).sum(), tensors)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_output_and_gradients_match_the_definition(lengths, scale):
    q, k, v, cu_seqlens, longest = inputs(lengths)
    gates = torch.randn(3, dtype=torch.float64, requires_grad=True)
    out = ek.ops.attention(q, k, v, cu_seqlens, longest, head_gates=gates, softmax_scale=scale)
    truth = oracles.attention(q, k, v, [n for n in lengths if n], gates=gates, scale=scale)
    torch.testing.assert_close(out, truth, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(out, q, k, v, gates), gradients(truth, q, k, v, gates), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("window", [0, 2, 40])
def test_with_a_window_only_near_tokens_count(lengths, window):
    q, k, v, cu_seqlens, longest = inputs(lengths)
    gates = torch.randn(3, dtype=torch.float64, requires_grad=True)
    out = ek.ops.attention(q, k, v, cu_seqlens, longest, head_gates=gates, window=window)
    truth = oracles.attention(q, k, v, [n for n in lengths if n], gates=gates, window=window)
    torch.testing.assert_close(out, truth, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(out, q, k, v, gates), gradients(truth, q, k, v, gates), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", [b for b in ek.ops.backends("attention") if b != "cuda"])
def test_a_query_that_no_key_is_near_gets_zero(backend):
    _, k, v, cu_seqlens, _ = inputs((2, 40), dtype=torch.float32)
    q = torch.randn(74, 3, 4, requires_grad=True)
    queries = {"cu_seqlens_q": torch.tensor([0, 34, 74], dtype=torch.int32), "max_seqlen_q": 40}
    out = ek.ops.attention(q, k, v, cu_seqlens, 40, **queries, window=3, backend=backend)
    grads = torch.autograd.grad(out.sum() + out.square().sum(), (q, k, v))
    truth = oracles.attention(torch.cat([q[:5], q[34:]]), k, v, (2, 40), (5, 40), window=3)
    torch.testing.assert_close(torch.cat([out[:5], out[34:]]), truth)
    assert not out[5:34].any() and not grads[0][5:34].any()
    for ours, theirs in zip(grads, torch.autograd.grad(truth.sum() + truth.square().sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_backend_without_windows_says_so():
    if "cuda" not in ek.ops.backends("attention"):
        pytest.skip("there is no CUDA backend here")
    q, k, v, cu_seqlens, longest = inputs((2, 3))
    with pytest.raises(RuntimeError, match="it has no attention with a window"):
        ek.ops.attention(q, k, v, cu_seqlens, longest, window=1, backend="cuda")


@pytest.mark.parametrize("kept", [[1], [0, 2], [], [0, 1, 2]])
def test_masked_heads_are_zero_and_get_zero_gradients(kept):
    lengths = (4, 2, 6)
    q, k, v, cu_seqlens, longest = inputs(lengths)
    gates = torch.randn(3, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(3, dtype=torch.bool)
    mask[kept] = True
    out = ek.ops.attention(q, k, v, cu_seqlens, longest, head_mask=mask, head_gates=gates)
    truth = oracles.attention(q, k, v, lengths, gates=gates) * mask[:, None]
    torch.testing.assert_close(out, truth, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(out, q, k, v, gates), gradients(truth, q, k, v, gates), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_masked_heads_are_not_read():
    q, k, v, cu_seqlens, longest = inputs((4, 3))
    poisoned = [t.detach().clone() for t in (q, k, v)]
    for t in poisoned:
        t[:, 1] = float("nan")
    mask = torch.tensor([True, False, True])
    out = ek.ops.attention(*poisoned, cu_seqlens, longest, head_mask=mask)
    torch.testing.assert_close(out, ek.ops.attention(q, k, v, cu_seqlens, longest, head_mask=mask))


def test_fewer_queries_than_keys():
    lengths, lengths_q = (4, 1, 6), (2, 1, 3)
    _, k, v, cu_seqlens, longest = inputs(lengths)
    q = torch.randn(sum(lengths_q), 3, 4, dtype=torch.float64, requires_grad=True)
    cu_seqlens_q = torch.tensor([0, *lengths_q]).cumsum(0).int()
    out = ek.ops.attention(q, k, v, cu_seqlens, longest, cu_seqlens_q=cu_seqlens_q, max_seqlen_q=3)
    truth = oracles.attention(q, k, v, lengths, lengths_q)
    torch.testing.assert_close(out, truth, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(out, q, k, v), gradients(truth, q, k, v), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_gradcheck():
    q, k, v, cu_seqlens, longest = inputs((2, 3), heads=2, size=2)
    gates = torch.randn(2, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([False, True])
    for head_mask in (None, mask):
        assert torch.autograd.gradcheck(
            lambda q, k, v, g, m=head_mask: ek.ops.attention(q, k, v, cu_seqlens, longest, head_mask=m, head_gates=g),
            (q, k, v, gates),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_is_as_good_as_plain_pytorch(dtype):
    lengths = (17, 40, 3)
    exact = inputs(lengths, heads=4, size=32)
    q, k, v = (t.detach().to(dtype) for t in exact[:3])
    truth = oracles.attention(q.double(), k.double(), v.double(), lengths)
    plain = oracles.attention(q, k, v, lengths)
    ours = ek.ops.attention(q, k, v, *exact[3:])
    assert ours.dtype == dtype
    floor = torch.finfo(dtype).eps
    assert (ours - truth).abs().max() <= 2 * (plain - truth).abs().max() + floor


def test_strided_views_are_taken():
    lengths = (4, 3)
    q, k, v, cu_seqlens, longest = inputs(lengths)
    packed = torch.stack([q, k, v], dim=2).detach()  # heads of q, k and v interleaved in memory
    out = ek.ops.attention(packed[:, :, 0], packed[:, :, 1], packed[:, :, 2], cu_seqlens, longest)
    torch.testing.assert_close(out, oracles.attention(q, k, v, lengths).detach(), rtol=1e-12, atol=1e-12)


def test_dropout_is_off_at_zero_unbiased_above_and_seeded():
    torch.manual_seed(3)
    lengths = (16,) * 64
    tokens = sum(lengths)
    q = torch.zeros(tokens, 2, 4)
    v = torch.ones(tokens, 2, 4)
    cu_seqlens = torch.arange(0, tokens + 1, 16, dtype=torch.int32)
    exact = ek.ops.attention(q, q, v, cu_seqlens, 16)
    torch.testing.assert_close(exact, torch.ones_like(exact))

    def dropped(seed):
        torch.manual_seed(seed)
        return ek.ops.attention(q, q, v, cu_seqlens, 16, dropout_p=0.25)

    first = dropped(0)
    assert torch.equal(first, dropped(0))
    assert not torch.equal(first, dropped(1))
    # Every output is the mean of 16 kept-or-dropped ones over 0.75: variance 0.25 / (0.75 * 16) each.
    rows = tokens * 2
    assert abs(first[:, :, 0].mean() - 1) < 5 * (0.25 / 0.75 / 16 / rows) ** 0.5


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"head_gates": torch.ones(3, dtype=torch.bfloat16)}, TypeError, "gates must stay float32"),
        ({"head_mask": torch.ones(3)}, TypeError, "expected torch.bool"),
        ({"head_mask": torch.ones(2, dtype=torch.bool)}, ValueError, r"head_mask has shape \(2,\)"),
        ({"dropout_p": 1.0}, ValueError, r"in \[0, 1\)"),
        ({"cu_seqlens": torch.tensor([0, 3])}, TypeError, "expected torch.int32"),
        ({"cu_seqlens": torch.tensor([0, 3], dtype=torch.int32)}, ValueError, "runs from 0 to 3, expected 0 to 5"),
        ({"max_seqlen": 2}, ValueError, "sequences of 2 to 3 tokens, expected 0 to the longest that was given, 2"),
        ({"k": torch.zeros(5, 3, 3, dtype=torch.float64)}, ValueError, "k has shape"),
        ({"v": torch.zeros(5, 3, 4)}, TypeError, "expected one dtype"),
        ({"max_seqlen_q": 1}, ValueError, "together"),
        ({"window": -1}, ValueError, "window is -1, expected 0 places or more"),
        ({"backend": "cuda"}, RuntimeError, "'cuda' was asked for but cannot run"),
        ({"backend": "fast"}, ValueError, "no backend named 'fast'"),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    q, k, v, cu_seqlens, longest = inputs((2, 3))
    arguments = {"q": q, "k": k, "v": v, "cu_seqlens": cu_seqlens, "max_seqlen": longest} | change
    with pytest.raises(error, match=message):
        ek.ops.attention(**arguments)


@pytest.mark.parametrize("backend", ek.ops.backends("attention"))
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize(
    ("lengths_q", "lengths", "heads"),
    [((), (), 2), ((0, 0), (0, 0), 2), ((2, 1), (0, 0), 2), ((0, 0), (2, 3), 2), ((2, 3), (2, 3), 0)],
    ids=["no sequence", "no token", "no key", "no query", "no head"],
)
def test_with_nothing_to_compute_queries_get_zeros(monkeypatch, backend, p, lengths_q, lengths, heads):
    """And torch, some releases of which end the process then, is not asked."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *_, **__: pytest.fail("torch was asked"))
    dtype = torch.bfloat16 if backend == "cuda" else torch.float32
    q, k, v = (torch.randn(sum(n), heads, 32, dtype=dtype, requires_grad=True) for n in (lengths_q, lengths, lengths))
    gates = torch.ones(heads, requires_grad=True)
    (cu_q, longest_q), (cu, longest) = (
        (torch.tensor([0, *n]).cumsum(0).int(), max(n, default=0)) for n in (lengths_q, lengths)
    )
    options = {"cu_seqlens_q": cu_q, "max_seqlen_q": longest_q, "head_gates": gates, "dropout_p": p}
    out = ek.ops.attention(q, k, v, cu, longest, backend=backend, **options)
    assert torch.equal(out, torch.zeros_like(q))
    for tensor, gradient in zip((q, k, v, gates), torch.autograd.grad(out.sum(), (q, k, v, gates)), strict=True):
        assert torch.equal(gradient, torch.zeros_like(tensor))


@pytest.mark.parametrize("name", ["attention", "attention_sublayer"])
def test_all_heads_masked_is_nothing_to_compute(monkeypatch, name):
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *_, **__: pytest.fail("torch was asked"))
    mask, cu_seqlens = torch.zeros(3, dtype=torch.bool), torch.tensor([0, 4, 6], dtype=torch.int32)
    if name == "attention":
        q, k, v, *packing = inputs((4, 2))
        assert not ek.ops.attention(q, k, v, *packing, head_mask=mask, backend="reference").any()
        return
    x = torch.randn(6, 12)
    linears = [torch.randn(*shape) for _ in range(4) for shape in ((12, 12), (12,))]
    norm = torch.ones(12), torch.zeros(12)
    out = ek.ops.attention_sublayer(
        x, cu_seqlens, 4, *linears, *norm, head_size=4, active_heads=mask, backend="reference"
    )
    torch.testing.assert_close(out, F.layer_norm(x + linears[-1], (12,), *norm, 1e-12))
