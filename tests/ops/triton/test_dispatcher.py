"""This backend's ops as torch's dispatcher, autograd and compiler see them."""

import pytest
import torch

import earlybert_kernels as ek
from earlybert_kernels.backends import triton

if triton.unavailable() is not None:
    pytest.skip(triton.unavailable(), allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
T, E, H, D, F, V = 20, 32, 2, 16, 24, 70
CU_SEQLENS = torch.tensor([0, 7, 8, T], dtype=torch.int32, device=DEVICE)
SEED = torch.tensor(0x123456789ABCDEF, device=DEVICE)


def leaves(*shapes, dtype=torch.float32):
    return [torch.randn(shape, device=DEVICE, dtype=dtype).requires_grad_() for shape in shapes]


def ones(units):
    return torch.ones(units, device=DEVICE, requires_grad=True)


def mask(units):
    return torch.arange(units, device=DEVICE) % 2 == 0


def attention(dtype):
    packing = (CU_SEQLENS, 12, CU_SEQLENS, 12)
    yield *leaves(*[(T, H, D)] * 3, dtype=dtype), *packing, None, None, None, 0.0, 0.25
    yield *leaves(*[(T, H, D)] * 3, dtype=dtype), *packing, mask(H), ones(H), SEED, 0.1, 0.25


def attention_sublayer(dtype):
    linears = leaves(*[(H * D, E), (H * D,)] * 3, (E, H * D), (E,), (E,), (E,), dtype=dtype)
    for first_token_only in (False, True):
        options = (D, first_token_only, 0.1, 0.1, 1e-12)
        for active in (None, mask(H), torch.tensor([1], device=DEVICE)):
            yield *leaves((T, E), dtype=dtype), CU_SEQLENS, 12, *linears, active, ones(H), SEED, SEED, *options


def feed_forward(dtype):
    for active in (None, mask(F), torch.tensor([1, 5], device=DEVICE)):
        yield *leaves((T, E), (F, E), (F,), (E, F), (E,), dtype=dtype), active, ones(F), "gelu"


def feed_forward_sublayer(dtype):
    weights = leaves((T, E), (F, E), (F,), (E, F), (E,), (E,), (E,), dtype=dtype)
    for active, seed in ((None, None), (mask(F), SEED), (torch.tensor([1, 5], device=DEVICE), SEED)):
        yield *weights, active, ones(F), seed, "gelu", 0.0 if seed is None else 0.1, 1e-12


def dropout_add_layer_norm(dtype):
    for seed in (None, SEED):
        yield *leaves((T, E), (T, E), (E,), (E,), dtype=dtype), seed, 0.0 if seed is None else 0.1, 1e-12


def embedding_layer_norm(dtype):
    ids = [torch.arange(T, device=DEVICE) % rows for rows in (V, 13, 2)]
    for seed in (None, SEED):
        tables = leaves((V, E), (13, E), (2, E), (E,), (E,), dtype=dtype)
        yield *ids, *tables, seed, 0, 0.0 if seed is None else 0.1, 1e-12


def masked_lm_loss(dtype):
    labels = torch.arange(T, device=DEVICE) % 3 - 1
    rows = torch.tensor([1, 2, 4, 5, -1, -1], device=DEVICE)
    (hidden,), (weight, bias) = leaves((T, E), dtype=dtype), leaves((V, E), (V,), dtype=dtype)
    yield hidden, labels, rows, weight, None
    yield hidden, labels, rows, weight, bias


OPS = (
    attention,
    attention_sublayer,
    dropout_add_layer_norm,
    embedding_layer_norm,
    feed_forward,
    feed_forward_sublayer,
    masked_lm_loss,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
def test_fakes_have_the_shapes_and_dtypes_of_the_results(op, dtype):
    """Forward and backward; the schema and the compiler's view of one call in `test_opcheck`."""
    overload = getattr(torch.ops.earlybert, op.__name__).triton
    for inputs in op(dtype):
        real = overload(*inputs)
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fakes = [mode.from_tensor(t) if isinstance(t, torch.Tensor) else t for t in inputs]
            fake = overload(*fakes)
        for ours, theirs in zip(real, fake, strict=True):
            assert (ours.shape, ours.dtype, ours.stride()) == (theirs.shape, theirs.dtype, theirs.stride())
        own = [t for t in inputs if isinstance(t, torch.Tensor) and t.requires_grad]
        for grad, leaf in zip(torch.autograd.grad(real[0].sum(), own), own, strict=True):
            assert (grad.shape, grad.dtype) == (leaf.shape, leaf.dtype)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
def test_opcheck(op):
    overload = getattr(torch.ops.earlybert, op.__name__).triton
    *_, inputs = op(torch.float32)
    torch.library.opcheck(overload, inputs)


def test_a_layer_compiles_into_one_graph():
    torch._dynamo.reset()
    x, *attention_weights = leaves((T, E), *[(H * D, E), (H * D,)] * 3, (E, H * D), (E,), (E,), (E,))
    feed_forward_weights = leaves((F, E), (F,), (E, F), (E,), (E,), (E,))
    gates = ones(H), ones(F)

    def layer(x):
        options = {"head_size": D, "head_gates": gates[0], "active_heads": mask(H), "backend": "triton"}
        x = ek.ops.attention_sublayer(x, CU_SEQLENS, 12, *attention_weights, **options)
        return ek.ops.feed_forward_sublayer(x, *feed_forward_weights, neuron_gates=gates[1], backend="triton")

    compiled = torch.compile(layer, fullgraph=True)(x)
    torch.testing.assert_close(compiled, layer(x))
    tensors = [x, *attention_weights, *feed_forward_weights, *gates]
    grads = (torch.autograd.grad(out.square().sum(), tensors) for out in (compiled, layer(x)))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)
