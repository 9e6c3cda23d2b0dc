"""The kernels of the embeddings that run on GPUs, Triton's and CUDA's: there if there is one, else on the CPU."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earlybert_kernels import reference
from earlybert_kernels.backends import cuda, triton
from earlybert_kernels.backends.triton import embedding_layer_norm as triton_op
from earlybert_kernels.reference.counter_rng import keep_mask
from tests.helpers.accuracy import assert_as_exact_as_pytorch
from tests.helpers.guarded import Guarded

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEED = 0x123456789ABCDEF
ROWS = (37, 11, 2)
EPS = 1e-5


def _missing(backend):
    reason = backend.unavailable()
    return pytest.mark.skipif(reason is not None, reason=f"{backend.__name__}: {reason}")


@pytest.fixture(
    params=[
        pytest.param(triton_op, id="triton", marks=_missing(triton)),
        pytest.param(cuda.embedding_layer_norm, id="cuda", marks=_missing(cuda)),
    ]
)
def op(request):
    """The backends' modules, in turn."""
    return request.param


def inputs(tokens, size, dtype=torch.float32, param_dtype=None):
    """Three ids, and three tables with weight and bias of the norm and a gradient of the output."""
    ids = [torch.randint(0, rows, (tokens,), device=DEVICE) for rows in ROWS]
    shapes = [*((rows, size) for rows in ROWS), (size,), (size,), (tokens, size)]
    dtypes = [dtype] * 3 + [param_dtype or dtype] * 2 + [dtype]
    return ids, [torch.randn(s).to(DEVICE, d) for s, d in zip(shapes, dtypes, strict=True)]


def computed(op, ids, tensors, p=None, padding_id=-1):
    """Output and gradients by the kernels."""
    *parameters, grad_out = tensors
    seed = None if p is None else torch.tensor(SEED, device=DEVICE)
    out, mean, rstd = op.forward(*ids, *parameters, seed, padding_id, p or 0.0, EPS)
    grads = op.backward(grad_out, mean, rstd, *ids, *parameters[:4], seed, padding_id, p or 0.0)
    return out, *grads


def defined(ids, tensors, p, padding_id, double):
    """The same by the reference, in float64 or in the tensors' own dtypes."""
    *parameters, grad_out = tensors
    leaves = [(t.double() if double else t.clone()).requires_grad_() for t in parameters]
    # F.layer_norm takes one dtype.
    norm = [t.to(leaves[0].dtype) for t in leaves[3:]]
    keep = None if p is None else keep_mask(SEED, grad_out.shape, p, DEVICE)
    padding_id = None if padding_id == -1 else padding_id
    out = reference.embedding_layer_norm(
        *ids, *leaves[:3], *norm, padding_id=padding_id, dropout_p=p or 0.0, eps=EPS, keep=keep
    )
    return out, *torch.autograd.grad(out, leaves, grad_out.to(out.dtype))


def check(op, ids, tensors, p=None, padding_id=-1):
    ours = computed(op, ids, tensors, p, padding_id)
    assert [t.dtype for t in ours] == [tensors[0].dtype, *(t.dtype for t in tensors[:5])]
    plain, truth = (defined(ids, tensors, p, padding_id, double) for double in (False, True))
    for a, b, exact in zip(ours, plain, truth, strict=True):
        assert a.shape == exact.shape
        assert_as_exact_as_pytorch([a], [b], [exact], a.dtype)


@pytest.mark.parametrize("p", [None, 0.3])
@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (37, 43), (21, 384), (9, 768), (5, 1000), (3, 4100)], ids=str)
def test_output_and_gradients(op, shape, p):
    check(op, *inputs(*shape), p, padding_id=0)


@pytest.mark.parametrize("param_dtype", [None, torch.float32], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(op, dtype, param_dtype):
    for shape in ((19, 43), (5, 300), (7, 384), (3, 768), (2, 1032)):  # 300 is a multiple of 4 and not of 8
        check(op, *inputs(*shape, dtype, param_dtype), 0.1)
    check(op, *inputs(21, 384, dtype, param_dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_misaligned_tables_and_gradients(op, dtype):
    ids, tensors = inputs(9, 64, dtype)
    for number, t in enumerate(tensors):
        one_off = torch.empty(t.numel() + 1, dtype=dtype, device=DEVICE)[1:].view(t.shape).copy_(t)
        check(op, ids, [*tensors[:number], one_off, *tensors[number + 1 :]], 0.1)


@pytest.mark.parametrize("size", [3, 64, 384])
def test_drops_what_the_shared_rule_drops_forward_and_backward(op, size):
    ids, tensors = inputs(3, size)
    keep = keep_mask(SEED, (3, size), 0.4, DEVICE)
    tensors[4] = torch.full_like(tensors[4], 100.0)  # the bias: no value that is kept comes near 0
    out = computed(op, ids, tensors, 0.4)[0]
    assert torch.equal(out != 0, keep)
    # The bias's gradient adds up what passes; a token at a time it is one row of the mask.
    for token in range(3):
        tensors[5] = torch.zeros_like(tensors[5])
        tensors[5][token] = 1
        assert torch.equal(computed(op, ids, tensors, 0.4)[5] != 0, keep[token])


def test_rows_that_do_not_occur_and_padding_have_no_gradient(op):
    ids, tensors = inputs(20, 16)
    ids[0][:5] = 7
    ids[2].fill_(1)
    _, word, position, token_type, *_ = computed(op, ids, tensors, 0.1, padding_id=7)
    for grad, own in ((word, ids[0]), (position, ids[1]), (token_type, ids[2])):
        occurs = torch.zeros(len(grad), dtype=torch.bool, device=DEVICE).index_fill(0, own, True)
        if grad is word:
            occurs[7] = False
        assert torch.equal(grad.any(1), occurs)
        assert grad.is_contiguous()


def test_many_tokens_of_one_id(op):
    ids, tensors = inputs(300, 12)
    ids[0][::2] = 4
    ids[0][1::4] = 5
    check(op, ids, tensors, 0.1)


@pytest.mark.parametrize(("which", "id_"), [(0, 37), (0, -1), (0, 1 << 40), (1, 11), (2, 2), (2, -7)])
def test_an_id_outside_its_table_makes_its_token_nan_and_reads_nothing(op, which, id_):
    ids, tensors = inputs(6, 20)
    good = computed(op, ids, tensors, 0.2)
    ids[which][2] = id_
    out, *grads = computed(op, ids, tensors, 0.2)
    others = torch.arange(6, device=DEVICE) != 2
    assert out[2].isnan().all()
    assert torch.equal(out[others], good[0][others])
    # No table's gradient has the token; it shows where all tokens add up.
    assert not any(grad.isnan().any() for grad in grads[:3])
    assert grads[3].isnan().all()


def test_strided_ids_tables_and_gradients(op):
    ids, tensors = inputs(9, 24)
    truth = computed(op, ids, tensors, 0.1)
    ids = [t.repeat_interleave(2)[::2] for t in ids]
    tensors = [t.repeat_interleave(3, -1)[..., ::3] for t in tensors]
    for a, b in zip(computed(op, ids, tensors, 0.1), truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_no_tokens(op):
    out, *grads = computed(op, *inputs(0, 8), 0.1)
    assert out.shape == (0, 8)
    assert not any(grad.any() for grad in grads)


def test_writes_every_value_and_none_beside_them(op, monkeypatch):
    ids, tensors = inputs(11, 43)
    guarded = Guarded(monkeypatch)
    computed(op, ids, tensors, 0.1)
    # Three results of forward; gradients of sum, weight and bias, the partial sums, and of CUDA two sums by key.
    guarded.check(9 if op is cuda.embedding_layer_norm else 7)


def test_results_are_bitwise_equal_in_every_run(op):
    ids, tensors = inputs(300, 7)
    for a, b in zip(computed(op, ids, tensors, 0.1), computed(op, ids, tensors, 0.1), strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(cuda.unavailable() is not None, reason=f"cuda: {cuda.unavailable()}")
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    tokens=st.integers(1, 90),
    size=st.sampled_from([1, 4, 7, 128, 132, 520]),
    rows=st.tuples(st.sampled_from([1, 31, 32, 33, 70]), st.integers(1, 9), st.integers(1, 4)),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    common=st.booleans(),
    seed=st.integers(0, 999),
)
def test_tables_and_tokens_at_random(tokens, size, rows, dtype, common, seed):
    torch.manual_seed(seed)
    ids = [torch.randint(0, own, (tokens,), device=DEVICE) for own in rows]
    if common:
        ids[0][tokens // 4 :] = rows[0] - 1
    shapes = [*((own, size) for own in rows), (size,), (size,), (tokens, size)]
    check(cuda.embedding_layer_norm, ids, [torch.randn(s).to(DEVICE, dtype) for s in shapes], 0.2, padding_id=0)


@pytest.mark.skipif(cuda.unavailable() is not None, reason=f"cuda: {cuda.unavailable()}")
def test_what_cuda_cannot_take_is_said():
    ids, (*tensors, _) = inputs(3, 8)
    refuses = cuda.embedding_layer_norm.refuses
    assert refuses(*ids, *tensors) is None
    assert "tables of one dtype, got torch.float16, torch.float32" in refuses(*ids, tensors[0].half(), *tensors[1:])
    assert "takes weight and bias of that or of float32" in refuses(*ids, *tensors[:4], tensors[4].half())
    wide = [t.new_empty(*t.shape[:-1], 8196) for t in tensors]
    assert "rows of up to 8192 values, got 8196" in refuses(*ids, *wide)
