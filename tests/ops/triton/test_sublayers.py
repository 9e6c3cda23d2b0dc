"""The sublayers of this backend in half precision and under autocast; float32 is in tests/ops/test_sublayers.py."""

import pytest
import torch
from accuracy import assert_as_exact_as_pytorch, results

import earlybert_kernels as ek
from earlybert_kernels import reference
from earlybert_kernels.backends import triton

if triton.unavailable() is not None:
    pytest.skip(triton.unavailable(), allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = (9, 1, 33, 6)
TOKENS, HIDDEN, HEADS, SIZE, NEURONS = sum(LENGTHS), 48, 4, 16, 50
PACKING = (torch.tensor([0, *LENGTHS]).cumsum(0).int(), max(LENGTHS))
UNITS = {"all": None, "indices": [0, 2, 3], "mask": [0, 2, 3]}


def attention_inputs():
    """x, the four linear layers, the norm, and gates."""
    inner = HEADS * SIZE
    shapes = [(TOKENS, HIDDEN), *[(inner, HIDDEN), (inner,)] * 3, (HIDDEN, inner), (HIDDEN,), (HIDDEN,), (HIDDEN,)]
    return [torch.randn(shape) * HIDDEN**-0.5 for shape in (*shapes, (HEADS,))]


def feed_forward_inputs():
    shapes = [(TOKENS, HIDDEN), (NEURONS, HIDDEN), (NEURONS,), (HIDDEN, NEURONS), (HIDDEN,), (HIDDEN,), (HIDDEN,)]
    return [torch.randn(shape) * HIDDEN**-0.5 for shape in (*shapes, (NEURONS,))]


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


def feed_forward(run, neurons, *tensors):
    *weights, gates = tensors
    gates = gates.double() if weights[0].dtype == torch.float64 else gates.float()
    return run(*weights, active_neurons=neurons, neuron_gates=gates)


#: How each is called, with which inputs, our op, its definition, and the units that there are.
SUBLAYERS = {
    "attention": (attention, attention_inputs, ek.ops.attention_sublayer, reference.attention_sublayer, HEADS),
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
    return [t for number, t in enumerate(tensors) if sublayer != "attention" or number != 5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kept", UNITS)
@pytest.mark.parametrize("sublayer", SUBLAYERS)
def test_half_precision(sublayer, kept, dtype):
    call, inputs, op, definition, units = SUBLAYERS[sublayer]
    tensors = [t.to(dtype).float() for t in inputs()]
    with ek.use_backend("triton"):
        ours = results(lambda *t: call(op, active(kept, units, DEVICE), *t), tensors, dtype, DEVICE)
    plain = results(lambda *t: call(definition, active(kept, units, "cpu"), *t), tensors, dtype)
    truth = results(lambda *t: call(definition, active(kept, units, "cpu"), *t), tensors, torch.float64)
    assert ours[0].dtype == dtype
    assert_as_exact_as_pytorch(*(without_b_k(sublayer, side) for side in (ours, plain, truth)), dtype)


@pytest.mark.parametrize("kept", UNITS)
@pytest.mark.parametrize("sublayer", SUBLAYERS)
def test_autocast(sublayer, kept):
    """Products in bfloat16, the residual and the norm in float32, gradients in the dtype of what they belong to."""
    call, inputs, op, definition, units = SUBLAYERS[sublayer]
    tensors = inputs()

    def cast(run):
        def within(*leaves):
            with torch.autocast(leaves[0].device.type, torch.bfloat16):
                return call(run, active(kept, units, leaves[0].device), *leaves)

        return within

    with ek.use_backend("triton"):
        ours = results(cast(op), tensors, torch.float32, DEVICE)
    plain = results(cast(definition), tensors, torch.float32)
    truth = results(lambda *t: call(definition, active(kept, units, "cpu"), *t), tensors, torch.float64)
    assert all(t.dtype == torch.float32 for t in ours)
    assert_as_exact_as_pytorch(*(without_b_k(sublayer, side) for side in (ours, plain, truth)), torch.bfloat16)
    # The residual is not rounded: with a block that adds nothing, the result is that of float32.
    tensors = [t * 0 if t.shape in ((HIDDEN, HEADS * SIZE), (HIDDEN, NEURONS)) else t for t in tensors]
    with ek.use_backend("triton"):
        bare = cast(op)(*(t.to(DEVICE) for t in tensors)).cpu()
    torch.testing.assert_close(bare, call(definition, active(kept, units, "cpu"), *tensors), rtol=1e-3, atol=4e-3)


@pytest.mark.parametrize("sublayer", SUBLAYERS)
def test_a_mask_that_changes_in_place_is_followed(sublayer):
    call, inputs, op, _, units = SUBLAYERS[sublayer]
    tensors = [t.to(DEVICE) for t in inputs()]
    mask = torch.zeros(units, dtype=torch.bool, device=DEVICE)
    with ek.use_backend("triton"):
        for kept in ([0], [1, 2], list(range(units))):
            mask.zero_()[kept] = True
            by_mask, by_indices = (call(op, a, *tensors) for a in (mask, torch.tensor(kept, device=DEVICE)))
            torch.testing.assert_close(by_mask, by_indices, rtol=1e-5, atol=1e-5)


def test_no_tokens():
    x, *weights, _ = (t.to(DEVICE) for t in feed_forward_inputs())
    out = ek.ops.feed_forward_sublayer(x[:0], *weights, backend="triton")
    assert out.shape == (0, HIDDEN)
