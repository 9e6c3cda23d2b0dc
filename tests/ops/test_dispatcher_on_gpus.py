"""The ops of the backends on GPUs as torch's dispatcher, autograd and compiler see them."""

import pytest
import torch

import earlybert_kernels as ek

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
T, E, H, D, F, V = 20, 32, 2, 32, 24, 70
CU_SEQLENS = torch.tensor([0, 7, 8, T], dtype=torch.int32, device=DEVICE)
SEED = torch.tensor(0x123456789ABCDEF, device=DEVICE)


def leaves(*shapes, dtype=torch.float32):
    return [torch.randn(shape, device=DEVICE, dtype=dtype).requires_grad_() for shape in shapes]


def ones(units):
    return torch.ones(units, device=DEVICE, requires_grad=True)


def mask(units):
    return torch.arange(units, device=DEVICE) % 2 == 0


def actives(backend, units, *indices):
    """What of a layer's units is computed, in every form that the backend takes."""
    yield None
    if backend != "cuda":
        yield mask(units)
    yield torch.tensor(indices, device=DEVICE)


def attention(backend, dtype):
    packing = (CU_SEQLENS, 12, CU_SEQLENS, 12)
    yield *leaves(*[(T, H, D)] * 3, dtype=dtype), *packing, None, None, None, 0.0, 0.25, None, True
    yield *leaves(*[(T, H, D)] * 3, dtype=dtype), *packing, mask(H), ones(H), SEED, 0.1, 0.25, None, True


def low(*tensors):
    """Copies in bfloat16, as autocast makes them, which beside a float32 input have a copy of it and of the result."""
    return [t.detach().bfloat16().requires_grad_() for t in tensors]


def attention_sublayer(backend, dtype):
    linears = leaves(*[(H * D, E), (H * D,)] * 3, (E, H * D), (E,), dtype=dtype)
    for first_token_only in (False, True):
        options = (D, first_token_only, 0.1, 0.1, 1e-12)
        x, *norm = leaves((T, E), (E,), (E,), dtype=dtype)
        for active in actives(backend, H, 1):
            yield x, CU_SEQLENS, 12, *linears, *norm, active, ones(H), SEED, SEED, *options, None, False, False, True
        x, *norm = leaves((T, E), (E,), (E,))
        units = (None, ones(H), SEED, SEED)
        yield x, CU_SEQLENS, 12, *low(*linears), *norm, *units, *options, x.detach().bfloat16(), True, False, True


def feed_forward(backend, dtype):
    for active in actives(backend, F, 1, 5):
        yield *leaves((T, E), (F, E), (F,), (E, F), (E,), dtype=dtype), active, ones(F), "gelu", True


def feed_forward_sublayer(backend, dtype):
    linears = leaves((F, E), (F,), (E, F), (E,), dtype=dtype)
    x, *norm = leaves((T, E), (E,), (E,), dtype=dtype)
    for active in actives(backend, F, 1, 5):
        seed = None if active is None else SEED
        rate = 0.0 if seed is None else 0.1
        yield x, *linears, *norm, active, ones(F), seed, "gelu", rate, 1e-12, None, False, False, True
    x, *norm = leaves((T, E), (E,), (E,))
    yield x, *low(*linears), *norm, None, ones(F), SEED, "gelu", 0.1, 1e-12, x.detach().bfloat16(), True, False, True


def dropout_add_layer_norm(backend, dtype):
    for seed in (None, SEED):
        yield *leaves((T, E), (T, E), (E,), (E,), dtype=dtype), seed, 0.0 if seed is None else 0.1, 1e-12, True


def embedding_layer_norm(backend, dtype):
    ids = [torch.arange(T, device=DEVICE) % rows for rows in (V, 13, 2)]
    for seed in (None, SEED):
        tables = leaves((V, E), (13, E), (2, E), (E,), (E,), dtype=dtype)
        yield *ids, *tables, seed, 0, 0.0 if seed is None else 0.1, 1e-12, True


def masked_lm_loss(backend, dtype):
    labels = torch.arange(T, device=DEVICE) % 3 - 1
    rows = torch.tensor([1, 2, 4, 5, -1, -1], device=DEVICE)
    (hidden,), (weight, bias) = leaves((T, E), dtype=dtype), leaves((V, E), (V,), dtype=dtype)
    yield hidden, labels, rows, weight, None, False
    yield hidden, labels, rows, weight, bias, False


OPS = (
    attention,
    attention_sublayer,
    dropout_add_layer_norm,
    embedding_layer_norm,
    feed_forward,
    feed_forward_sublayer,
    masked_lm_loss,
)


def dtypes_of(backend, op):
    """Those of the two that are tested which the backend takes: there is no attention in float32 on tensor cores."""
    half_only = backend == "cuda" and op in (attention, attention_sublayer)
    return [torch.bfloat16] if half_only else [torch.float32, torch.bfloat16]


@pytest.fixture(params=OPS, ids=lambda op: op.__name__)
def op(request, gpu_target):
    """Every op that the backend has."""
    if gpu_target.backend not in ek.ops.backends(request.param.__name__):
        pytest.skip(f"{gpu_target.backend} has no {request.param.__name__}")
    return request.param


def test_fakes_have_the_shapes_and_dtypes_of_the_results(gpu_target, op):
    """Forward and backward; the schema and the compiler's view of one call in `test_opcheck`."""
    backend = gpu_target.backend
    overload = getattr(getattr(torch.ops.earlybert, op.__name__), backend)
    for inputs in (inputs for dtype in dtypes_of(backend, op) for inputs in op(backend, dtype)):
        real = overload(*inputs)
        assert_as_fake(overload, inputs, real)
        if op is not masked_lm_loss:
            with torch.no_grad():
                own, *others = overload(*inputs[:-1], False)  # `saves`
                assert_as_fake(overload, [*inputs[:-1], False], (own, *others))
            saved = others[:-1] if "sublayer" in op.__name__ else others  # its last is the result's copy
            assert torch.equal(own, real[0]) and not any(t.numel() for t in saved)
        own = [t for t in inputs if isinstance(t, torch.Tensor) and t.requires_grad]
        for grad, leaf in zip(torch.autograd.grad(real[0].sum(), own), own, strict=True):
            assert (grad.shape, grad.dtype) == (leaf.shape, leaf.dtype)


def assert_as_fake(overload, inputs, real):
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = overload(*(mode.from_tensor(t) if isinstance(t, torch.Tensor) else t for t in inputs))
    for ours, theirs in zip(real, fake, strict=True):
        assert (ours.shape, ours.dtype, ours.stride()) == (theirs.shape, theirs.dtype, theirs.stride())


def test_opcheck(gpu_target, op):
    backend = gpu_target.backend
    *_, inputs = op(backend, dtypes_of(backend, op)[0])
    torch.library.opcheck(getattr(getattr(torch.ops.earlybert, op.__name__), backend), inputs)


def test_a_layer_compiles_into_one_graph(gpu_target):
    torch._dynamo.reset()
    backend = gpu_target.backend
    dtype = dtypes_of(backend, attention_sublayer)[0]
    linears = [(H * D, E), (H * D,)] * 3
    x, *attention_weights = leaves((T, E), *linears, (E, H * D), (E,), (E,), (E,), dtype=dtype)
    feed_forward_weights = leaves((F, E), (F,), (E, F), (E,), (E,), (E,), dtype=dtype)
    gates = ones(H), ones(F)
    *_, heads = actives(backend, H, 1)

    def layer(x):
        options = {"head_size": D, "head_gates": gates[0], "active_heads": heads, "backend": backend}
        x = ek.ops.attention_sublayer(x, CU_SEQLENS, 12, *attention_weights, **options)
        return ek.ops.feed_forward_sublayer(x, *feed_forward_weights, neuron_gates=gates[1], backend=backend)

    compiled = torch.compile(layer, fullgraph=True)(x)
    torch.testing.assert_close(compiled, layer(x))
    tensors = [x, *attention_weights, *feed_forward_weights, *gates]
    grads = (torch.autograd.grad(out.square().sum(), tensors) for out in (compiled, layer(x)))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)
