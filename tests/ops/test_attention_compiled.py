"""The compiled backends of attention, against the oracle in float64."""

import pytest
import torch

import earlybert_kernels as ek
from earlybert_kernels.backends import cpu
from earlybert_kernels.reference.counter_rng import keep_mask
from tests.helpers import oracles
from tests.helpers.accuracy import assert_as_exact_as_pytorch, results
from tests.helpers.covering import every_pair
from tests.ops.conftest import ISAS

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=f"cpu: {cpu.unavailable()}")

SEED = 0x123456789ABCDEF
#: sequences, heads, head size, and queries a sequence where they are not the keys.
CASES = {
    "one token": ((1,), 1, 1, None),
    "mixed": ((3, 1, 8, 2), 3, 4, None),
    "bert": ((17, 64, 5, 128, 1), 12, 32, None),
    "long": ((512, 33), 2, 64, None),
    "odd head size": ((7, 50), 3, 13, None),
    "empty sequence": ((4, 0, 6), 2, 8, None),
    "first tokens": ((4, 90, 6), 3, 32, (1, 1, 1)),
    "fewer queries": ((40, 1, 70), 2, 16, (33, 1, 2)),
}


def inputs(lengths, heads, size, lengths_q=None):
    """q, k, v, gates, and the packing as keyword arguments."""
    tokens_q, tokens = sum(lengths if lengths_q is None else lengths_q), sum(lengths)
    tensors = [torch.randn(n, heads, size) for n in (tokens_q, tokens, tokens)]
    gates = torch.randn(heads)
    packing = {"cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).int(), "max_seqlen": max(lengths)}
    if lengths_q is not None:
        packing["cu_seqlens_q"] = torch.tensor([0, *lengths_q]).cumsum(0).int()
        packing["max_seqlen_q"] = max(lengths_q)
    return [t.requires_grad_() for t in (*tensors, gates)], packing


def with_seed(q, k, v, gates, packing, dropout_p, mask=None, window=None):
    """The dispatcher's op under a known seed."""
    cu_seqlens, longest = packing["cu_seqlens"], packing["max_seqlen"]
    queries = packing.get("cu_seqlens_q", cu_seqlens), packing.get("max_seqlen_q", longest)
    arguments = (q, k, v, cu_seqlens, longest, *queries, mask, gates, torch.tensor(SEED), dropout_p)
    return torch.ops.earlybert.attention.cpu(*arguments, q.shape[2] ** -0.5, window, True)[0]


def known_keep(q, longest, dropout_p):
    return keep_mask(SEED, (q.shape[1], q.shape[0], longest), dropout_p)


@every_pair(isa=ISAS, case=list(CASES), dropout_p=[0.0, 0.3], indirect=["isa"])
def test_output_and_gradients(isa, case, dropout_p):
    lengths, _, _, lengths_q = CASES[case]
    tensors, packing = inputs(*CASES[case])
    keep = known_keep(tensors[0], max(lengths), dropout_p) if dropout_p else None

    def defined(q, k, v, gates):
        real = [n for n in lengths if n]
        return oracles.attention(q, k, v, real, lengths_q, gates=gates, keep=keep, dropout_p=dropout_p)

    def compiled(q, k, v, gates):
        if dropout_p:
            return with_seed(q, k, v, gates, packing, dropout_p)
        return ek.ops.attention(q, k, v, **packing, head_gates=gates, backend="cpu")

    ours = results(compiled, tensors, torch.float32)
    assert_as_exact_as_pytorch(ours, results(defined, tensors, torch.float32), results(defined, tensors, torch.float64))


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize(
    ("case", "window"),
    [
        ("one token", 1),
        ("mixed", 1),
        ("mixed", 5),
        ("bert", 5),
        ("bert", 31),
        ("bert", 64),
        ("long", 64),
        ("long", 200),
        ("odd head size", 3),
        ("empty sequence", 1),
        ("first tokens", 5),
    ],
)
def test_with_a_window(isa, case, window, dropout_p):
    lengths, _, _, lengths_q = CASES[case]
    tensors, packing = inputs(*CASES[case])
    keep = known_keep(tensors[0], max(lengths), dropout_p) if dropout_p else None

    def defined(q, k, v, gates):
        real = [n for n in lengths if n]
        options = {"gates": gates, "keep": keep, "dropout_p": dropout_p, "window": window}
        return oracles.attention(q, k, v, real, lengths_q, **options)

    def compiled(q, k, v, gates):
        if dropout_p:
            return with_seed(q, k, v, gates, packing, dropout_p, window=window)
        return ek.ops.attention(q, k, v, **packing, head_gates=gates, window=window, backend="cpu")

    ours = results(compiled, tensors, torch.float32)
    assert_as_exact_as_pytorch(ours, results(defined, tensors, torch.float32), results(defined, tensors, torch.float64))


@pytest.mark.parametrize("kept", [[], [1], [0, 2]])
def test_masked_heads_are_not_read_and_change_no_other(kept):
    (q, k, v, gates), packing = inputs((9, 4, 20), 3, 8)
    mask = torch.zeros(3, dtype=torch.bool)
    mask[kept] = True
    dense = results(lambda *t: with_seed(*t, packing, 0.2), (q, k, v, gates), torch.float32)
    poisoned = [t.detach().clone() for t in (q, k, v)]
    for t in poisoned:
        t[:, ~mask] = float("nan")
    masked = results(lambda *t: with_seed(*t, packing, 0.2, mask), (*poisoned, gates), torch.float32)
    for ours, full in zip(masked[:4], dense[:4], strict=True):
        assert torch.equal(ours, torch.where(mask[:, None], full, 0.0))
    assert torch.equal(masked[4], torch.where(mask, dense[4], 0.0))


def test_large_scores_neither_overflow_nor_lose_the_largest():
    (q, k, v, _), packing = inputs((6, 30), 2, 16)
    tensors = [(q * 1e4).detach(), k, v]
    plain, truth = (
        results(lambda *t: oracles.attention(*t, (6, 30)), tensors, dtype) for dtype in (torch.float32, torch.float64)
    )
    ours = results(lambda *t: ek.ops.attention(*t, **packing, backend="cpu"), tensors, torch.float32)
    assert_as_exact_as_pytorch(ours[:1], plain[:1], truth[:1])
    assert all(t.isfinite().all() for t in ours)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_what_is_not_finite_spreads_as_by_the_definition(isa, which, value):
    (q, k, v, gates), packing = inputs((3, 21), 2, 8)
    with torch.no_grad():
        {"q": q, "k": k, "v": v}[which][5, 1, 3] = value
    ours = results(
        lambda *t: ek.ops.attention(*t[:3], **packing, head_gates=t[3], backend="cpu"), (q, k, v, gates), torch.float32
    )
    truth = results(lambda *t: oracles.attention(*t[:3], (3, 21), gates=t[3]), (q, k, v, gates), torch.float32)
    for a, exact in zip(ours, truth, strict=True):
        assert torch.equal(a.isfinite(), exact.isfinite())


def test_a_longest_of_any_size_is_taken():
    tensors, packing = inputs((3, 5), 2, 4)
    expected = results(lambda *t: with_seed(*t, packing, 0.0), tensors, torch.float32)
    packing["max_seqlen"] = 2**63 - 1
    ours = results(lambda *t: with_seed(*t, packing, 0.0), tensors, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert with_seed(*tensors, packing, 0.5).isfinite().all()


@pytest.mark.parametrize("offsets", [(0, 5, 9), (0, 9, 8), (1, 3, 8), (0, 1, 8)])
def test_the_kernel_itself_refuses_offsets_that_leave_its_tensors(offsets):
    """Inside a compiled graph nobody else reads them."""
    tensors, packing = inputs((3, 5), 2, 4)
    packing["cu_seqlens"] = torch.tensor(offsets, dtype=torch.int32)
    with pytest.raises(ValueError, match="cu_seqlens does not run from 0 to 8 in steps of 0 to 5"):
        with_seed(*tensors, packing, 0.0)


def test_interleaved_and_transposed_memory():
    qkv = torch.randn(12, 3, 3, 8)
    q, k, v = qkv.unbind(1)
    backwards = torch.randn(8, 3, 12).permute(2, 1, 0)  # heads are not contiguous
    packing = {"cu_seqlens": torch.tensor([0, 5, 12], dtype=torch.int32), "max_seqlen": 7}
    for tensors in ((q, k, v), (backwards, k, backwards)):
        ours = ek.ops.attention(*tensors, **packing, backend="cpu")
        copies = [t.contiguous() for t in tensors]
        assert torch.equal(ours, ek.ops.attention(*copies, **packing, backend="cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [-1, 0, 3])
def test_outputs_are_written_whole(window, dtype):
    """What the kernel is handed is poisoned, so that an element it leaves out shows."""
    (q, k, v, gates), packing = inputs((5, 40), 2, 24)
    q, k, v, half = q.to(dtype), k.to(dtype), v.to(dtype), dtype == torch.bfloat16
    cu_seqlens = packing["cu_seqlens"]
    sizes = (2, 2, 24, 45, 45, 40, 40, window)
    heads = [((t.data_ptr(), half), t.stride(0), t.stride(1)) for t in (q, k, v)]
    arguments = (sizes, cu_seqlens.data_ptr(), cu_seqlens.data_ptr(), heads, 0, gates.data_ptr(), 0, 0.0, 0.2)
    shapes = (q.shape, (2, 45), q.shape, q.shape, q.shape, (2, 2))
    dtypes = (dtype, torch.float32, dtype, dtype, dtype, torch.float32)
    out, logsumexp, *grads = (torch.full(s, float("nan"), dtype=d) for s, d in zip(shapes, dtypes, strict=True))
    grad_out = torch.ones(q.shape, dtype=dtype)
    cpu.extension.attention_forward(*arguments, (out.data_ptr(), half), logsumexp.data_ptr())
    *addresses, gates_address = (grad.data_ptr() for grad in grads)
    places = ((address, half) for address in (grad_out.data_ptr(), *addresses))
    grad_out_place, *grad_places = places
    cpu.extension.attention_backward(*arguments, grad_out_place, logsumexp.data_ptr(), *grad_places, gates_address)
    assert all(t.isfinite().all() for t in (out, logsumexp, *grads))


def test_calls_draw_new_masks_and_seeds_repeat_them():
    (q, k, v, _), packing = inputs((30, 30), 2, 8)

    def call(seed):
        torch.manual_seed(seed)
        return ek.ops.attention(q, k, v, **packing, dropout_p=0.5, backend="cpu")

    assert torch.equal(call(0), call(0)) and not torch.equal(call(0), call(1))


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(dropout_p, masked):
    (q, k, v, gates), packing = inputs((3, 5), 2, 4)
    cu_seqlens = packing["cu_seqlens"]
    mask = torch.tensor([True, False]) if masked else None
    seed = torch.tensor(SEED) if dropout_p else None
    arguments = (q, k, v, cu_seqlens, 5, cu_seqlens, 5, mask, gates if masked else None, seed, dropout_p, 0.5)
    torch.library.opcheck(torch.ops.earlybert.attention.cpu, (*arguments, None, True))
    torch.library.opcheck(torch.ops.earlybert.attention.cpu, (*arguments, 2, True))


def test_compiles_into_one_graph():
    torch._dynamo.reset()
    compiled = torch.compile(lambda *t, **packing: 2 * ek.ops.attention(*t, **packing), fullgraph=True, dynamic=True)
    for lengths in ((4, 6), (9, 2, 5)):
        (q, k, v, _), packing = inputs(lengths, 2, 8)
        ours = results(lambda *t, p=packing: compiled(*t, **p), (q, k, v), torch.float32)
        eager = results(lambda *t, p=packing: 2 * ek.ops.attention(*t, **p), (q, k, v), torch.float32)
        for a, b in zip(ours, eager, strict=True):
            torch.testing.assert_close(a, b)


def test_what_it_cannot_take_is_said():
    (q, k, v, gates), packing = inputs((3, 5), 2, 4)
    for tensors, gate in (((q.double(), k.double(), v.double()), None), ((q, k, v), gates.double())):
        with pytest.raises(RuntimeError, match=r"it takes float32 (or bfloat16 )?tensors, got torch.float64"):
            ek.ops.attention(*tensors, **packing, head_gates=gate, backend="cpu")
        ek.ops.attention(*tensors, **packing, head_gates=gate)  # left to choose, it takes another backend
    out = ek.ops.attention(q, k, v, **packing, backend="cpu")
    (grad,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        grad.sum().backward()
