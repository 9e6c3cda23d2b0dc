"""The two sublayers of an encoder layer: one op each, against their definition and against one written out."""

import pytest
import torch
import torch.nn.functional as F

import earlybert_kernels as ek
from earlybert_kernels import reference
from earlybert_kernels.backends import cpu
from earlybert_kernels.reference.counter_rng import keep_mask, kept_scale
from tests.helpers import oracles
from tests.helpers.accuracy import assert_as_exact_as_pytorch, assert_defined_by, results
from tests.helpers.covering import every_pair
from tests.helpers.targets import Target
from tests.ops.conftest import TARGETS

CPU = Target("cpu", "cpu")
needs_cpu = pytest.mark.skipif(cpu.unavailable() is not None, reason=f"cpu: {cpu.unavailable()}")

LENGTHS = (9, 1, 33, 6)
TOKENS, HIDDEN, HEADS, SIZE, NEURONS = sum(LENGTHS), 24, 4, 8, 50
SEEDS = (0x123456789ABCDEF, 0x7654321)
PACKING = (torch.tensor([0, *LENGTHS]).cumsum(0).int(), max(LENGTHS))
UNITS = {"all": None, "some": [0, 2, 3], "one": [1], "none": []}


def attention_inputs(dtype=torch.float32, size=SIZE):
    """x, the four linear layers, the norm, and gates."""
    inner = HEADS * size
    shapes = [(TOKENS, HIDDEN), *[(inner, HIDDEN), (inner,)] * 3, (HIDDEN, inner), (HIDDEN,), (HIDDEN,), (HIDDEN,)]
    # Weights of this size leave the softmax unsaturated.
    return [(torch.randn(s, dtype=dtype) * HIDDEN**-0.5).requires_grad_() for s in (*shapes, (HEADS,))]


def feed_forward_inputs(dtype=torch.float32):
    shapes = [(TOKENS, HIDDEN), (NEURONS, HIDDEN), (NEURONS,), (HIDDEN, NEURONS), (HIDDEN,), (HIDDEN,), (HIDDEN,)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in (*shapes, (NEURONS,))]


def indices(kept):
    return None if kept is None else torch.tensor(kept, dtype=torch.int64)


def attention_by_hand(tensors, kept=None, first_token_only=False, keeps=(None, None), dropout_p=0.0):
    """The attention sublayer with every head computed and the gates of the pruned ones 0; not folded."""
    x, w_q, b_q, w_k, b_k, w_v, b_v, w_out, b_out, norm_weight, norm_bias, gates = tensors
    mask = torch.zeros(HEADS).to(x) if kept is not None else torch.ones(HEADS).to(x)
    mask[slice(None) if kept is None else kept] = 1
    queries = x[PACKING[0][:-1].long()] if first_token_only else x
    q, k, v = ((s @ w.T + b).view(len(s), HEADS, -1) for s, w, b in ((queries, w_q, b_q), (x, w_k, b_k), (x, w_v, b_v)))
    lengths_q = [1] * len(LENGTHS) if first_token_only else None
    options = {"gates": gates * mask, "keep": keeps[0], "dropout_p": dropout_p}
    context = oracles.attention(q, k, v, LENGTHS, lengths_q, **options)
    h = context.flatten(1) @ w_out.T + b_out
    h = h if keeps[1] is None else h * keeps[1] * kept_scale(dropout_p)
    return F.layer_norm(queries + h, (HIDDEN,), norm_weight, norm_bias, 1e-12)


def keeps_of(kept, first_token_only, dropout_p):
    """What dropout keeps of the attention weights (by place among the computed heads) and of the output."""
    if not dropout_p:
        return None, None
    computed = list(range(HEADS)) if kept is None else kept
    queries = len(LENGTHS) if first_token_only else TOKENS
    longest = max(LENGTHS)
    weights = torch.ones(HEADS, queries, longest, dtype=torch.bool)
    weights[computed] = keep_mask(SEEDS[0], (len(computed), queries, longest), dropout_p)
    return weights, keep_mask(SEEDS[1], (queries, HIDDEN), dropout_p)


@pytest.mark.parametrize("kept", UNITS)
@pytest.mark.parametrize("first_token_only", [False, True])
def test_definition_of_attention(first_token_only, kept):
    *tensors, gates = attention_inputs(torch.float64)
    options = {"active_heads": indices(UNITS[kept]), "first_token_only": first_token_only, "head_size": SIZE}
    out = ek.ops.attention_sublayer(tensors[0], *PACKING, *tensors[1:], head_gates=gates, **options)
    truth = attention_by_hand((*tensors, gates), UNITS[kept], first_token_only)
    torch.testing.assert_close(out, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kept", UNITS)
def test_definition_of_feed_forward(kept):
    *tensors, norm_weight, norm_bias, gates = feed_forward_inputs(torch.float64)
    mask = torch.ones(NEURONS) if UNITS[kept] is None else torch.zeros(NEURONS).index_fill(0, indices(UNITS[kept]), 1)
    norm = {"norm_weight": norm_weight, "norm_bias": norm_bias}
    options = {"active_neurons": indices(UNITS[kept]), "neuron_gates": gates, "eps": 1e-5}
    out = ek.ops.feed_forward_sublayer(*tensors, **norm, **options)
    h = oracles.feed_forward(*tensors, gates=gates * mask)
    truth = F.layer_norm(tensors[0] + h, (HIDDEN,), norm_weight, norm_bias, 1e-5)
    torch.testing.assert_close(out, truth, rtol=1e-10, atol=1e-10)


def active(kept, units, target, as_mask):
    """The kept units as a backend takes them: indices, or on a GPU also a mask."""
    if kept is None:
        return None
    if not as_mask:
        return indices(kept).to(target.device)
    return torch.zeros(units, dtype=torch.bool).index_fill(0, indices(kept), True).to(target.device)


def compiled_attention(tensors, kept, first_token_only, dropout_p, target=CPU, as_mask=False):
    *tensors, gates = tensors
    size = len(tensors[1]) // HEADS
    seeds = [torch.tensor(s, device=target.device) if dropout_p else None for s in SEEDS]
    options = (size, first_token_only, dropout_p, dropout_p, 1e-12, None, False, False, True)
    packing = PACKING[0].to(target.device), PACKING[1]
    inputs = (tensors[0], *packing, *tensors[1:], active(kept, HEADS, target, as_mask), gates.float(), *seeds, *options)
    return getattr(torch.ops.earlybert.attention_sublayer, target.backend)(*inputs)[0]


def compiled_feed_forward(tensors, kept, activation, dropout_p, target, as_mask=False):
    *tensors, gates = tensors
    seed = torch.tensor(SEEDS[0], device=target.device) if dropout_p else None
    inputs = (
        *tensors,
        active(kept, NEURONS, target, as_mask),
        gates,
        seed,
        activation,
        dropout_p,
        1e-12,
        None,
        False,
        False,
        True,
    )
    return getattr(torch.ops.earlybert.feed_forward_sublayer, target.backend)(*inputs)[0]


@every_pair(target=TARGETS, first_token_only=[False, True], kept=list(UNITS), dropout_p=[0.0, 0.3], indirect=["target"])
def test_attention_output_and_gradients(target, first_token_only, kept, dropout_p):
    kept, as_mask = UNITS[kept], target.backend == "triton"
    keeps = keeps_of(kept, first_token_only, dropout_p)
    masked = torch.ones(HEADS, dtype=torch.bool) if kept is None else torch.zeros(HEADS, dtype=torch.bool)
    masked[slice(None) if kept is None else kept] = True
    # CUDA's attention takes half precision, and heads of 32 or 64 values.
    dtype, size = (torch.bfloat16, 32) if target.backend == "cuda" else (torch.float32, SIZE)
    rows = masked.repeat_interleave(size)

    def defined(*tensors):
        # What is multiplied by a mask of 0 still has gradients in w_out and in the gates, which a skipped head has not.
        *others, w_out, b_out, norm_weight, norm_bias, gates = tensors
        w_out = torch.where(rows, w_out, w_out.detach())
        gates = torch.where(masked, gates, gates.detach())
        tensors = (*others, w_out, b_out, norm_weight, norm_bias, gates)
        return attention_by_hand(tensors, kept, first_token_only, keeps, dropout_p)

    def compiled(*tensors):
        return compiled_attention(tensors, kept, first_token_only, dropout_p, target, as_mask)

    tensors = [t.to(dtype) for t in attention_inputs(size=size)]
    ours = list(results(compiled, tensors, dtype, target.device))
    plain, truth = (list(results(defined, tensors, d)) for d in (dtype, torch.float64))
    # A softmax does not change when all its scores do: the gradient of b_k is rounding, of the size of w_k's.
    grads_b_k = [gradients.pop(5) for gradients in (ours, plain, truth)]
    assert (grads_b_k[0] - grads_b_k[2]).abs().max() <= 84 * torch.finfo(dtype).eps * (1 + truth[4].abs().max())
    assert_as_exact_as_pytorch(ours, plain, truth, dtype)


@every_pair(target=TARGETS, kept=list(UNITS), dropout_p=[0.0, 0.3], activation=["gelu", "relu"], indirect=["target"])
def test_feed_forward_output_and_gradients(target, kept, dropout_p, activation):
    keep = keep_mask(SEEDS[0], (TOKENS, HIDDEN), dropout_p) if dropout_p else None

    def defined(*tensors):
        return reference.feed_forward_sublayer(
            *tensors[:7], active_neurons=indices(UNITS[kept]), neuron_gates=tensors[7], activation=activation,
            dropout_p=dropout_p, keep=keep,
        )  # fmt: skip

    def compiled(*tensors):
        as_mask = target.backend == "triton"
        return compiled_feed_forward(tensors, UNITS[kept], activation, dropout_p, target, as_mask)

    assert_defined_by(compiled, defined, feed_forward_inputs(), target.device)


@needs_cpu
@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
@pytest.mark.parametrize("kept", ["all", "some"])
def test_opcheck(kept, dropout_p):
    seeds = [torch.tensor(s) if dropout_p else None for s in SEEDS]
    *tensors, gates = attention_inputs()
    for first_token_only in (False, True):
        options = (SIZE, first_token_only, dropout_p, dropout_p, 1e-12, None, False, False, True)
        inputs = (tensors[0], *PACKING, *tensors[1:], indices(UNITS[kept]), gates, *seeds, *options)
        torch.library.opcheck(torch.ops.earlybert.attention_sublayer.cpu, inputs)
    *tensors, gates = feed_forward_inputs()
    inputs = (*tensors, indices(UNITS[kept]), gates, seeds[0], "gelu", dropout_p, 1e-12, None, False, False, True)
    torch.library.opcheck(torch.ops.earlybert.feed_forward_sublayer.cpu, inputs)


@needs_cpu
def test_compiles_into_one_graph():
    torch._dynamo.reset()
    *attention, head_gates = attention_inputs()
    *feed_forward, neuron_gates = feed_forward_inputs()

    def layer(x):
        options = {"head_size": SIZE, "head_gates": head_gates, "active_heads": indices([0, 3])}
        x = ek.ops.attention_sublayer(x, *PACKING, *attention[1:], **options)
        return 2 * ek.ops.feed_forward_sublayer(x, *feed_forward[1:], neuron_gates=neuron_gates)

    leaves = [attention[0], *attention[1:], head_gates, *feed_forward[1:], neuron_gates]
    plain, compiled = (f(attention[0]) for f in (layer, torch.compile(layer, fullgraph=True)))
    torch.testing.assert_close(compiled, plain)
    grads = (torch.autograd.grad(out.square().sum(), leaves) for out in (compiled, plain))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


@needs_cpu
def test_pruned_units_are_not_read():
    *tensors, gates = attention_inputs()
    rows = torch.ones(HEADS * SIZE, dtype=torch.bool)
    rows[SIZE : 2 * SIZE] = False
    poisoned = [t.detach().clone() for t in tensors]
    for number in range(1, 7):
        poisoned[number][~rows] = float("nan")
    poisoned[7][:, ~rows] = float("nan")
    own_gates = gates.detach().clone().index_fill(0, torch.tensor([1]), float("nan"))
    ours = compiled_attention((*poisoned, own_gates), UNITS["some"], False, 0.1)
    assert torch.equal(ours, compiled_attention((*tensors, gates), UNITS["some"], False, 0.1))


@needs_cpu
def test_float64_runs_in_the_definition_and_a_forced_backend_refuses_it():
    *tensors, gates = feed_forward_inputs(torch.float64)
    assert ek.ops.feed_forward_sublayer(*tensors, neuron_gates=gates).dtype == torch.float64
    with pytest.raises(RuntimeError, match="it takes float32 tensors"):
        ek.ops.feed_forward_sublayer(*tensors, neuron_gates=gates, backend="cpu")


@needs_cpu
def test_autocast_gets_the_dtype_that_it_asks_for():
    *tensors, gates = feed_forward_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        out = ek.ops.feed_forward_sublayer(*tensors, neuron_gates=gates, backend="cpu")
    with torch.autocast("cpu", torch.float16), pytest.raises(RuntimeError, match=r"autocast to torch.float16 is on"):
        ek.ops.feed_forward_sublayer(*tensors, neuron_gates=gates, backend="cpu")
    exact = ek.ops.feed_forward_sublayer(*tensors, neuron_gates=gates)
    assert not torch.equal(out.float(), exact)
    torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.1)


@needs_cpu
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_no_copy_without_another_dtype(backend):
    x, *tensors, _ = feed_forward_inputs()
    out, low = ek.ops.feed_forward_sublayer(x, *tensors, x_low=x.detach(), return_low=True, backend=backend)
    assert low is None
    assert torch.equal(out, ek.ops.feed_forward_sublayer(x, *tensors, backend=backend))


def test_a_copy_of_something_else_is_refused():
    x, *tensors, _ = feed_forward_inputs()
    with pytest.raises(ValueError, match=r"x_low has shape .*, expected the shape of x"):
        ek.ops.feed_forward_sublayer(x, *tensors, x_low=x[:1].bfloat16())


@needs_cpu
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_no_tokens(backend):
    x, *tensors = [t[:0] if number == 0 else t for number, t in enumerate(attention_inputs()[:-1])]
    cu_seqlens = torch.zeros(1, dtype=torch.int32)
    out = ek.ops.attention_sublayer(x, cu_seqlens, 0, *tensors, head_size=SIZE, backend=backend)
    assert out.shape == (0, HIDDEN)
    x, *tensors = [t[:0] if number == 0 else t for number, t in enumerate(feed_forward_inputs()[:-1])]
    out = ek.ops.feed_forward_sublayer(x, *tensors, backend=backend)
    assert out.shape == (0, HIDDEN)
    assert not any(gradient.any() for gradient in torch.autograd.grad(out.sum(), tensors))


@needs_cpu
def test_an_undefined_gradient_of_the_output():
    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    *tensors, _ = feed_forward_inputs()
    Stop.apply(ek.ops.feed_forward_sublayer(*tensors)).sum().backward()
    assert all(t.grad is None or not t.grad.any() for t in tensors)


@needs_cpu
def test_a_second_derivative_is_refused():
    *tensors, _ = feed_forward_inputs()
    out = ek.ops.feed_forward_sublayer(*tensors)
    (grad,) = torch.autograd.grad(out.sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"w_q": torch.zeros(33, HIDDEN)}, ValueError, r"w_q has shape \(33, 24\), expected \(heads \* 8"),
        ({"w_k": torch.zeros(32, 23)}, ValueError, r"w_k has shape \(32, 23\)"),
        ({"b_v": torch.zeros(31)}, ValueError, "b_v has shape"),
        ({"norm_bias": torch.zeros(5)}, ValueError, "norm_bias has shape"),
        ({"x": torch.zeros(3, HIDDEN)}, ValueError, "runs from 0 to 49, expected 0 to 3 tokens"),
        ({"active_heads": torch.tensor([1.0])}, TypeError, "active_heads is torch.float32, expected torch.int64"),
        ({"active_heads": torch.tensor([True])}, ValueError, r"active_heads has shape \(1,\)"),
        ({"active_heads": torch.tensor([0, 4])}, IndexError, "is not in|out of range"),
        pytest.param({"active_heads": torch.tensor([2, 2])}, ValueError, "comes twice", marks=needs_cpu),
        ({"head_gates": torch.ones(HEADS, dtype=torch.bfloat16)}, TypeError, "gates must stay float32"),
        ({"dropout_p": 1.0}, ValueError, "dropout_p is 1.0"),
        (
            {"cu_seqlens": torch.tensor([0, 49, 49], dtype=torch.int32), "max_seqlen": 49, "first_token_only": True},
            ValueError,
            "expected 1 to the longest",
        ),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    names = ["x", "w_q", "b_q", "w_k", "b_k", "w_v", "b_v", "w_out", "b_out", "norm_weight", "norm_bias", "head_gates"]
    arguments = dict(zip(names, attention_inputs(), strict=True))
    arguments |= {"cu_seqlens": PACKING[0], "max_seqlen": PACKING[1], "head_size": SIZE} | change
    with pytest.raises(error, match=message):
        ek.ops.attention_sublayer(**arguments)
