"""The ops at the sizes of BERT-base, which Triton's interpreter and the emulated CUDA kernels are too slow for."""

import pytest
import torch

import earlybert_kernels as ek
from earlybert_kernels import reference
from earlybert_kernels.backends import cuda, triton
from earlybert_kernels.reference.counter_rng import keep_mask
from tests.helpers import oracles
from tests.helpers.accuracy import assert_as_exact_as_pytorch, results

if not torch.cuda.is_available():
    pytest.skip("needs a GPU; smaller sizes are tested without one", allow_module_level=True)

DEVICE = "cuda"
DTYPES = [torch.float32, torch.bfloat16]
#: 4096 tokens; CUDA's attention takes no more than 512 of a sequence. Longer ones than Triton's here would need a large
#: part of a GPU's memory for the definition in float64, whose scores are padded.
LENGTHS = {
    "triton": (1, 512, 509, 1024, 1024, 128, 13, 384, 77, 256, 168),
    "cuda": (1, 512, 509, 512, 512, 512, 512, 128, 13, 384, 77, 256, 168),
}
HEADS, SIZE, NEURONS, VOCABULARY, POSITIONS = 12, 64, 3072, 30522, 2048
REPETITIONS = 100

TOKENS, HIDDEN = sum(LENGTHS["triton"]), HEADS * SIZE
HEADS_KEPT, NEURONS_KEPT = (
    torch.arange(units, device=DEVICE).remainder(5).lt(3) for units in (HEADS, NEURONS)
)  # three of five
PACKING = {
    backend: (torch.tensor([0, *lengths], device=DEVICE).cumsum(0).int(), max(lengths))
    for backend, lengths in LENGTHS.items()
}
IDS = (
    torch.arange(TOKENS, device=DEVICE).mul(7919).remainder(VOCABULARY),
    torch.cat([torch.arange(length, device=DEVICE) for length in LENGTHS["triton"]]),
    torch.arange(TOKENS, device=DEVICE).div(1000, rounding_mode="floor").remainder(2),
)
LABELS = torch.where(IDS[0].remainder(7) == 0, IDS[0], -100)
NORM = ((HIDDEN,), (HIDDEN,))
FEED_FORWARD = ((TOKENS, HIDDEN), (NEURONS, HIDDEN), (NEURONS,), (HIDDEN, NEURONS), (HIDDEN,))


def units(backend, masked, kept):
    """Those of a sublayer that are computed: CUDA's kernels follow indices, Triton's also a mask."""
    if not masked:
        return None
    return kept.nonzero().squeeze(1) if backend == "cuda" else kept


def attention(run, backend, masked, /, *tensors, **options):
    *qkv, gates = tensors
    return run(*qkv, *PACKING[backend], head_mask=HEADS_KEPT if masked else None, head_gates=exact(gates), **options)


def attention_sublayer(run, backend, masked, /, *tensors, dropout_p=0.0, **options):
    x, *weights, gates = tensors
    rates = {"attention_dropout_p": dropout_p, "dropout_p": dropout_p}
    active = units(backend, masked, HEADS_KEPT)
    given = {"head_size": SIZE, "active_heads": active, "head_gates": exact(gates), **rates, **options}
    return run(x, *PACKING[backend], *weights, **given)


def feed_forward(run, backend, masked, /, *tensors, dropout_p=0.0, **options):
    *weights, gates = tensors
    return run(*weights, neuron_mask=NEURONS_KEPT if masked else None, neuron_gates=exact(gates), **options)


def feed_forward_sublayer(run, backend, masked, /, *tensors, **options):
    *weights, gates = tensors
    return run(*weights, active_neurons=units(backend, masked, NEURONS_KEPT), neuron_gates=exact(gates), **options)


def dropout_add_layer_norm(run, backend, masked, /, *tensors, **options):
    return run(*tensors, **options)


def embedding_layer_norm(run, backend, masked, /, *tensors, **options):
    return run(*IDS, *tensors, padding_id=0, **options)


def masked_lm_loss(run, backend, masked, /, hidden, weight, bias, dropout_p=0.0, **options):
    return run(hidden, LABELS, weight, bias, **options)


def exact(gates):
    """Gates are never in half precision."""
    return gates if gates.dtype == torch.float64 else gates.float()


#: How each op is called, and the shapes of what it has gradients for.
OPS = {
    "attention": (attention, [(TOKENS, HEADS, SIZE)] * 3 + [(HEADS,)]),
    "attention_sublayer": (
        attention_sublayer,
        [(TOKENS, HIDDEN), *[(HIDDEN, HIDDEN), (HIDDEN,)] * 4, *NORM, (HEADS,)],
    ),
    "feed_forward": (feed_forward, [*FEED_FORWARD, (NEURONS,)]),
    "feed_forward_sublayer": (feed_forward_sublayer, [*FEED_FORWARD, *NORM, (NEURONS,)]),
    "dropout_add_layer_norm": (dropout_add_layer_norm, [(TOKENS, HIDDEN)] * 2 + [*NORM]),
    "embedding_layer_norm": (
        embedding_layer_norm,
        [(VOCABULARY, HIDDEN), (POSITIONS, HIDDEN), (2, HIDDEN), *NORM],
    ),
    "masked_lm_loss": (masked_lm_loss, [(TOKENS, HIDDEN), (VOCABULARY, HIDDEN), (VOCABULARY,)]),
}
PRUNED = ("attention", "attention_sublayer", "feed_forward", "feed_forward_sublayer")
#: What CUDA's kernels do not compute: a block of its own with a mask, and the loss.
NOT_IN_CUDA = (("feed_forward", True), ("masked_lm_loss", False))
CALLS = [
    pytest.param(op, backend, masked, id=f"{op}-{backend}-{'masked' if masked else 'all'}")
    for backend in LENGTHS
    for op in OPS
    for masked in (False, True)[: 1 + (op in PRUNED)]
    if backend != "cuda" or (op, masked) not in NOT_IN_CUDA
]


def inputs(op, dtype):
    """Weights are small, so that products are as large as what goes in; all are numbers of `dtype`."""
    shapes = OPS[op][1]
    weights = [len(shape) == 2 and number > 0 and shape[0] != TOKENS for number, shape in enumerate(shapes)]
    scales = [shape[1] ** -0.5 if is_weight else 1.0 for shape, is_weight in zip(shapes, weights, strict=True)]
    return [(torch.randn(s, device=DEVICE) * scale).to(dtype).float() for s, scale in zip(shapes, scales, strict=True)]


def without_key_bias(op, tensors):
    """A softmax does not change when all its scores do: the gradient of b_k, result 5, is nothing but rounding."""
    return [t for number, t in enumerate(tensors) if op != "attention_sublayer" or number != 5]


def skip_where_it_cannot_run(backend, op="", dtype=torch.bfloat16):
    reason = {"cuda": cuda, "triton": triton}[backend].unavailable()
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    if backend == "cuda" and op.startswith("attention") and dtype == torch.float32:
        pytest.skip("CUDA's attention is of half precision")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "backend", "masked"), CALLS)
def test_output_and_gradients(op, backend, masked, dtype):
    skip_where_it_cannot_run(backend, op, dtype)
    call, _ = OPS[op]
    tensors = inputs(op, dtype)
    ours = results(lambda *t: call(getattr(ek.ops, op), backend, masked, *t, backend=backend), tensors, dtype, DEVICE)
    plain, truth = (
        results(lambda *t: call(getattr(reference, op), backend, masked, *t), tensors, precision, DEVICE)
        for precision in (dtype, torch.float64)
    )
    assert_as_exact_as_pytorch(*(without_key_bias(op, side) for side in (ours, plain, truth)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", LENGTHS)
def test_attention_drops_what_the_shared_rule_drops(backend, dtype):
    skip_where_it_cannot_run(backend, "attention", dtype)
    tensors, lengths = inputs("attention", dtype), LENGTHS[backend]
    seed = torch.tensor(0x123456789ABCDEF, device=DEVICE)
    keep = keep_mask(int(seed), (HEADS, TOKENS, max(lengths)), 0.1, DEVICE)

    def compiled(q, k, v, gates):
        packing = (*PACKING[backend], *PACKING[backend])
        run = getattr(torch.ops.earlybert.attention, backend)
        return run(q, k, v, *packing, None, gates.float(), seed, 0.1, SIZE**-0.5, None, True)[0]

    def defined(q, k, v, gates):
        return oracles.attention(q, k, v, lengths, gates=gates, keep=keep, dropout_p=0.1)

    ours = results(compiled, tensors, dtype, DEVICE)
    plain, truth = (results(defined, tensors, precision, DEVICE) for precision in (dtype, torch.float64))
    assert_as_exact_as_pytorch(ours, plain, truth, dtype)


@pytest.mark.parametrize(("op", "backend", "masked"), CALLS)
def test_every_run_gives_the_same_bits(op, backend, masked):
    skip_where_it_cannot_run(backend, op)
    call, _ = OPS[op]
    leaves = [t.bfloat16().requires_grad_() for t in inputs(op, torch.bfloat16)]
    first = None
    for _ in range(REPETITIONS):
        torch.manual_seed(0)  # of the dropout mask
        out = call(getattr(ek.ops, op), backend, masked, *leaves, dropout_p=0.1, backend=backend)
        found = [out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out))]
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(found, first, strict=True))
