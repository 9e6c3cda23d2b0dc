"""The sublayers of the backends on GPUs in half precision and under autocast; see test_sublayers.py for the rest."""

from functools import partial

import pytest
import torch

import earlybert_kernels as ek
from earlybert_kernels import reference
from earlybert_kernels.backends import cuda, triton
from tests.helpers.accuracy import assert_as_exact_as_pytorch, results
from tests.helpers.covering import every_pair
from tests.ops.conftest import target_on_gpu

pytestmark = pytest.mark.usefixtures("fresh_memory_is_nan")

LENGTHS = (9, 1, 33, 6)
TOKENS, HIDDEN, HEADS, SIZE, NEURONS = sum(LENGTHS), 48, 4, 32, 50
PACKING = (torch.tensor([0, *LENGTHS]).cumsum(0).int(), max(LENGTHS))
HALF = (torch.float16, torch.bfloat16)
UNITS = {"all": None, "indices": [0, 2, 3], "mask": [0, 2, 3]}


def attention_inputs():
    """x, the four linear layers, the norm, and gates."""
    inner = HEADS * SIZE
    shapes = [(TOKENS, HIDDEN), *[(inner, HIDDEN), (inner,)] * 3, (HIDDEN, inner), (HIDDEN,), (HIDDEN,), (HIDDEN,)]
    return [torch.randn(shape) * HIDDEN**-0.5 for shape in (*shapes, (HEADS,))]


def feed_forward_inputs():
    shapes = [(TOKENS, HIDDEN), (NEURONS, HIDDEN), (NEURONS,), (HIDDEN, NEURONS), (HIDDEN,), (HIDDEN,), (HIDDEN,)]
    return [torch.randn(shape) * HIDDEN**-0.5 for shape in (*shapes, (NEURONS,))]


#: What each backend is tested on, with which units: CUDA's takes no masks.
FORMS = [(backend, kept) for backend in ("triton", "cuda") for kept in UNITS if (backend, kept) != ("cuda", "mask")]


@pytest.fixture
def form(request):
    """A backend's target, and the form of the units that it computes."""
    backend, kept = request.param
    return target_on_gpu(backend), kept


def active(kept, units, device):
    if UNITS[kept] is None:
        return None
    indices = torch.tensor(UNITS[kept], device=device)
    if kept == "indices":
        return indices
    return torch.zeros(units, dtype=torch.bool, device=device).index_fill(0, indices, True)


def attention(run, heads, *tensors):
    x, *weights, gates = tensors
    gates = gates.double() if x.dtype == torch.float64 else gates.float()
    packing = PACKING[0].to(x.device), PACKING[1]
    return run(x, *packing, *weights, head_size=SIZE, active_heads=heads, head_gates=gates)


def attention_of_first_tokens(run, heads, *tensors):
    return attention(partial(run, first_token_only=True), heads, *tensors)


def feed_forward(run, neurons, *tensors):
    *weights, gates = tensors
    gates = gates.double() if weights[0].dtype == torch.float64 else gates.float()
    return run(*weights, active_neurons=neurons, neuron_gates=gates)


#: How each is called, with which inputs, our op, its definition, and the units that there are.
SUBLAYERS = {
    "attention": (attention, attention_inputs, ek.ops.attention_sublayer, reference.attention_sublayer, HEADS),
    "attention_of_first_tokens": (
        attention_of_first_tokens,
        attention_inputs,
        ek.ops.attention_sublayer,
        reference.attention_sublayer,
        HEADS,
    ),
    "feed_forward": (
        feed_forward,
        feed_forward_inputs,
        ek.ops.feed_forward_sublayer,
        reference.feed_forward_sublayer,
        NEURONS,
    ),
}


def without_b_k(sublayer, tensors):
    """A softmax does not change when all its scores do: the gradient of b_k, result 5, is nothing but rounding."""
    return [t for number, t in enumerate(tensors) if sublayer == "feed_forward" or number != 5]


@every_pair(form=FORMS, sublayer=list(SUBLAYERS), dtype=HALF, indirect=["form"])
def test_half_precision(form, sublayer, dtype):
    gpu_target, kept = form
    call, inputs, op, definition, units = SUBLAYERS[sublayer]
    tensors = [t.to(dtype).float() for t in inputs()]
    device = gpu_target.device
    with ek.use_backend(gpu_target.backend):
        ours = results(lambda *t: call(op, active(kept, units, device), *t), tensors, dtype, device)
    plain = results(lambda *t: call(definition, active(kept, units, "cpu"), *t), tensors, dtype)
    truth = results(lambda *t: call(definition, active(kept, units, "cpu"), *t), tensors, torch.float64)
    assert ours[0].dtype == dtype
    assert_as_exact_as_pytorch(*(without_b_k(sublayer, side) for side in (ours, plain, truth)), dtype)


@pytest.mark.parametrize("form", FORMS, indirect=True)
@pytest.mark.parametrize("sublayer", SUBLAYERS)
def test_autocast(form, sublayer):
    """Products in bfloat16, the residual and the norm in float32, gradients in the dtype of what they belong to."""
    gpu_target, kept = form
    call, inputs, op, definition, units = SUBLAYERS[sublayer]
    tensors = inputs()

    def cast(run):
        def within(*leaves):
            with torch.autocast(leaves[0].device.type, torch.bfloat16):
                return call(run, active(kept, units, leaves[0].device), *leaves)

        return within

    with ek.use_backend(gpu_target.backend):
        ours = results(cast(op), tensors, torch.float32, gpu_target.device)
    plain = results(cast(definition), tensors, torch.float32)
    truth = results(lambda *t: call(definition, active(kept, units, "cpu"), *t), tensors, torch.float64)
    assert all(t.dtype == torch.float32 for t in ours)
    assert_as_exact_as_pytorch(*(without_b_k(sublayer, side) for side in (ours, plain, truth)), torch.bfloat16)
    # The residual is not rounded: with a block that adds nothing, the result is that of float32.
    tensors = [t * 0 if t.shape in ((HIDDEN, HEADS * SIZE), (HIDDEN, NEURONS)) else t for t in tensors]
    with ek.use_backend(gpu_target.backend):
        bare = cast(op)(*(t.to(gpu_target.device) for t in tensors)).cpu()
    torch.testing.assert_close(bare, call(definition, active(kept, units, "cpu"), *tensors), rtol=1e-3, atol=4e-3)


def under_autocast(call, op, low, *leaves, **options):
    with torch.autocast(leaves[0].device.type, low):
        return call(partial(op, **options), None, *leaves)


@every_pair(gpu_target=["triton", "cuda"], sublayer=list(SUBLAYERS), low=HALF, indirect=["gpu_target"])
def test_copies_are_what_casting_makes(gpu_target, sublayer, low):
    """That of the result, and with that of x the same bits as without it, gradients too."""
    call, inputs, op, _, _ = SUBLAYERS[sublayer]
    leaves = [t.to(gpu_target.device).requires_grad_() for t in inputs()]
    x_low = leaves[0].detach().to(low)
    with ek.use_backend(gpu_target.backend):
        alone = under_autocast(call, op, low, *leaves)
        out, out_low = under_autocast(call, op, low, *leaves, x_low=x_low, return_low=True)
    assert torch.equal(out, alone)
    assert out_low.dtype == low and not out_low.requires_grad
    assert torch.equal(out_low, alone.to(low))
    grads = (torch.autograd.grad(result.square().sum(), leaves) for result in (out, alone))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*grads, strict=True))


@pytest.mark.parametrize("sublayer", SUBLAYERS)
def test_a_copy_is_read_where_it_has_the_dtype_of_the_products(gpu_target, sublayer):
    call, inputs, op, _, _ = SUBLAYERS[sublayer]
    x, *others = (t.to(gpu_target.device) for t in inputs())
    low, wrong = torch.bfloat16, torch.full_like(x, float("nan"))
    with ek.use_backend(gpu_target.backend):
        assert under_autocast(call, op, low, x, *others, x_low=wrong.to(low)).isnan().any()
        exact = under_autocast(call, op, low, x, *others)
        assert torch.equal(under_autocast(call, op, low, x, *others, x_low=wrong.half()), exact)
        x, *others = (t.to(low) for t in (x, *others))
        out, none = call(partial(op, x_low=wrong.to(low), return_low=True), None, x, *others)
    assert out.isfinite().all() and none is None


@pytest.mark.skipif(triton.unavailable() is not None, reason=f"triton: {triton.unavailable()}")
@pytest.mark.parametrize("sublayer", SUBLAYERS)
def test_a_mask_that_changes_in_place_is_followed(sublayer):
    call, inputs, op, _, units = SUBLAYERS[sublayer]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = [t.to(device) for t in inputs()]
    mask = torch.zeros(units, dtype=torch.bool, device=device)
    with ek.use_backend("triton"):
        for kept in ([0], [1, 2], list(range(units))):
            mask.zero_()[kept] = True
            by_mask, by_indices = (call(op, a, *tensors) for a in (mask, torch.tensor(kept, device=device)))
            torch.testing.assert_close(by_mask, by_indices, rtol=1e-5, atol=1e-5)


def test_no_tokens(gpu_target):
    x, *weights, _ = (t.to(gpu_target.device) for t in feed_forward_inputs())
    out = ek.ops.feed_forward_sublayer(x[:0], *weights, backend=gpu_target.backend)
    assert out.shape == (0, HIDDEN)


@pytest.mark.skipif(cuda.unavailable() is not None, reason=f"cuda: {cuda.unavailable()}")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, *t: [x.double(), *t], "an input in the dtype of the products, torch.float32, or in float32"),
        (lambda x, *t: [x.half(), *t], "an input in the dtype of the products, torch.float32, or in float32"),
        (lambda *t: [*t[:5], t[5].half(), t[6].half(), t[7]], "a norm in the input's dtype, torch.float32, or in fl"),
        (lambda *t: [*t[:5], t[5], t[6].half(), t[7]], "a norm in the input's dtype, torch.float32, or in float32"),
    ],
)
def test_dtypes_that_cuda_refuses(change, reason):
    tensors = change(*(t.to("cpu" if cuda.EMULATED else "cuda") for t in feed_forward_inputs()))
    with ek.use_backend("cuda"), pytest.raises(RuntimeError, match=reason):
        feed_forward(ek.ops.feed_forward_sublayer, None, *tensors)


@pytest.mark.skipif(cuda.unavailable() is not None, reason=f"cuda: {cuda.unavailable()}")
@pytest.mark.parametrize(
    ("dtype", "options", "reason"),
    [
        (torch.float32, {}, "it takes float16 and bfloat16, got float32"),
        (torch.float16, {"head_size": 16}, "it takes heads of 32 or 64 values, got 16"),
        (torch.float16, {"max_seqlen": 513}, "it takes sequences of up to 512 tokens here, got 513"),
        (torch.float16, {"active_heads": torch.tensor([True, False] * 2)}, "it takes active units as int64 indices"),
    ],
)
def test_attention_that_cuda_refuses(dtype, options, reason):
    device = "cpu" if cuda.EMULATED else "cuda"
    x, *weights, _ = (t.to(device, dtype) for t in attention_inputs())
    options = {"head_size": SIZE, "max_seqlen": PACKING[1], **options, "backend": "cuda"}
    options = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    with pytest.raises(RuntimeError, match=reason):
        ek.ops.attention_sublayer(x, PACKING[0].to(device), options.pop("max_seqlen"), *weights, **options)
