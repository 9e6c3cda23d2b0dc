"""The ops at the sizes of BERT-base, which Triton's interpreter is too slow for."""

import oracles
import pytest
import torch
from accuracy import assert_as_exact_as_pytorch, results

import earlybert_kernels as ek
from earlybert_kernels import reference
from earlybert_kernels.backends import triton
from earlybert_kernels.reference.counter_rng import keep_mask

if not torch.cuda.is_available():
    pytest.skip("needs a GPU; smaller sizes are tested without one", allow_module_level=True)
if triton.unavailable() is not None:
    pytest.skip(f"triton: {triton.unavailable()}", allow_module_level=True)

DEVICE = "cuda"
DTYPES = [torch.float32, torch.bfloat16]
LENGTHS = (1, 512, 509, 2048, 128, 13, 384, 77, 256, 168)  # 4096 tokens
HEADS, SIZE, NEURONS, VOCABULARY, POSITIONS = 12, 64, 3072, 30522, 2048
REPETITIONS = 100

TOKENS, HIDDEN = sum(LENGTHS), HEADS * SIZE
HEADS_KEPT, NEURONS_KEPT = (
    torch.arange(units, device=DEVICE).remainder(5).lt(3) for units in (HEADS, NEURONS)
)  # three of five
CU_SEQLENS = torch.tensor([0, *LENGTHS], device=DEVICE).cumsum(0).int()
PACKING = (CU_SEQLENS, max(LENGTHS))
IDS = (
    torch.arange(TOKENS, device=DEVICE).mul(7919).remainder(VOCABULARY),
    torch.cat([torch.arange(length, device=DEVICE) for length in LENGTHS]),
    torch.arange(TOKENS, device=DEVICE).div(1000, rounding_mode="floor").remainder(2),
)
LABELS = torch.where(IDS[0].remainder(7) == 0, IDS[0], -100)
NORM = ((HIDDEN,), (HIDDEN,))
FEED_FORWARD = ((TOKENS, HIDDEN), (NEURONS, HIDDEN), (NEURONS,), (HIDDEN, NEURONS), (HIDDEN,))


def attention(run, masked, *tensors, **options):
    *qkv, gates = tensors
    return run(*qkv, *PACKING, head_mask=HEADS_KEPT if masked else None, head_gates=exact(gates), **options)


def attention_sublayer(run, masked, *tensors, dropout_p=0.0, **options):
    x, *weights, gates = tensors
    active = HEADS_KEPT if masked else None
    rates = {"attention_dropout_p": dropout_p, "dropout_p": dropout_p}
    given = {"head_size": SIZE, "active_heads": active, "head_gates": exact(gates), **rates, **options}
    return run(x, *PACKING, *weights, **given)


def feed_forward(run, masked, *tensors, dropout_p=0.0, **options):
    *weights, gates = tensors
    return run(*weights, neuron_mask=NEURONS_KEPT if masked else None, neuron_gates=exact(gates), **options)


def feed_forward_sublayer(run, masked, *tensors, **options):
    *weights, gates = tensors
    return run(*weights, active_neurons=NEURONS_KEPT if masked else None, neuron_gates=exact(gates), **options)


def dropout_add_layer_norm(run, masked, *tensors, **options):
    return run(*tensors, **options)


def embedding_layer_norm(run, masked, *tensors, **options):
    return run(*IDS, *tensors, padding_id=0, **options)


def masked_lm_loss(run, masked, hidden, weight, bias, dropout_p=0.0, **options):
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


def inputs(op, dtype):
    """Weights are small, so that products are as large as what goes in; all are numbers of `dtype`."""
    shapes = OPS[op][1]
    weights = [len(shape) == 2 and number > 0 and shape[0] != TOKENS for number, shape in enumerate(shapes)]
    scales = [shape[1] ** -0.5 if is_weight else 1.0 for shape, is_weight in zip(shapes, weights, strict=True)]
    return [(torch.randn(s, device=DEVICE) * scale).to(dtype).float() for s, scale in zip(shapes, scales, strict=True)]


def without_key_bias(op, tensors):
    """A softmax does not change when all its scores do: the gradient of b_k, result 5, is nothing but rounding."""
    return [t for number, t in enumerate(tensors) if op != "attention_sublayer" or number != 5]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "masked"), [*((op, False) for op in OPS), *((op, True) for op in PRUNED)])
def test_output_and_gradients(op, masked, dtype):
    call, _ = OPS[op]
    tensors = inputs(op, dtype)
    ours = results(lambda *t: call(getattr(ek.ops, op), masked, *t, backend="triton"), tensors, dtype, DEVICE)
    plain, truth = (
        results(lambda *t: call(getattr(reference, op), masked, *t), tensors, precision, DEVICE)
        for precision in (dtype, torch.float64)
    )
    assert_as_exact_as_pytorch(*(without_key_bias(op, side) for side in (ours, plain, truth)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_drops_what_the_shared_rule_drops(dtype):
    tensors = inputs("attention", dtype)
    seed = torch.tensor(0x123456789ABCDEF, device=DEVICE)
    keep = keep_mask(int(seed), (HEADS, TOKENS, max(LENGTHS)), 0.1, DEVICE)

    def compiled(q, k, v, gates):
        packing = (*PACKING, *PACKING)
        return torch.ops.earlybert.attention.triton(q, k, v, *packing, None, gates.float(), seed, 0.1, SIZE**-0.5)[0]

    def defined(q, k, v, gates):
        return oracles.attention(q, k, v, LENGTHS, gates=gates, keep=keep, dropout_p=0.1)

    ours = results(compiled, tensors, dtype, DEVICE)
    plain, truth = (results(defined, tensors, precision, DEVICE) for precision in (dtype, torch.float64))
    assert_as_exact_as_pytorch(ours, plain, truth, dtype)


@pytest.mark.parametrize("op", OPS)
def test_every_run_gives_the_same_bits(op):
    call, _ = OPS[op]
    leaves = [t.bfloat16().requires_grad_() for t in inputs(op, torch.bfloat16)]
    first = None
    for _ in range(REPETITIONS):
        torch.manual_seed(0)  # of the dropout mask
        out = call(getattr(ek.ops, op), True, *leaves, dropout_p=0.1, backend="triton")
        found = [out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out))]
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(found, first, strict=True))
