import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from guarded import Guarded
from targets import device_of
from torch.utils.checkpoint import checkpoint

import earlybert_kernels as ek
from earlybert_kernels import reference
from earlybert_kernels.backends import cpu, cuda
from earlybert_kernels.reference.counter_rng import keep_mask

NAME = "dropout_add_layer_norm"
SHAPES = [(1, 1), (1, 1023), (7, 13), (31, 127), (512, 384), (2, 3, 768), (5, 2), (37, 1843), (1000, 5)]
SHAPES += [(7, 1021), (3, 2048), (3, 4099)]


def needs(backend):
    reason = {"cpu": cpu, "cuda": cuda}[backend].unavailable()
    return pytest.param(backend, marks=pytest.mark.skipif(reason is not None, reason=f"{backend}: {reason}"))


COMPILED = [needs("cpu"), needs("cuda")]
needs_cpu = pytest.mark.skipif(cpu.unavailable() is not None, reason=f"cpu: {cpu.unavailable()}")
needs_cuda = pytest.mark.skipif(cuda.unavailable() is not None, reason=f"cuda: {cuda.unavailable()}")
CUDA_DEVICE = device_of("cuda")


def seeded(backend, *inputs):
    """The dispatcher's op under a known seed."""
    return getattr(torch.ops.earlybert.dropout_add_layer_norm, backend)(*inputs)[0]


def inputs(shape, *, device="cpu", dtype=torch.float32, param_dtype=None, grad=True):
    """x, residual, weight, bias, and a gradient of the output."""
    cols = shape[-1]
    x, residual, weight, bias, grad_out = (torch.randn(s) for s in (shape, shape, (cols,), (cols,), shape))
    tensors = [x, residual + 3, 1 + 0.2 * weight, bias]
    dtypes = [dtype, dtype, param_dtype or dtype, param_dtype or dtype]
    tensors = [t.to(device, d).requires_grad_(grad) for t, d in zip(tensors, dtypes, strict=True)]
    return *tensors, grad_out.to(device, dtype)


def seed_for(p, device="cpu"):
    return torch.tensor(0x123456789ABCDEF, device=device) if p else None


def run(function, tensors, grad_out):
    out = function(*tensors)
    return (out, *torch.autograd.grad(out, tensors, grad_out))


def defined(tensors, grad_out, p, keep, dtype, eps=1e-12):
    """Output and gradients of the reference in `dtype` under a mask."""

    def function(*t):
        return reference.dropout_add_layer_norm(*t, dropout_p=p, eps=eps, keep=keep)

    return run(function, [t.detach().to(dtype).requires_grad_() for t in tensors], grad_out.to(dtype))


def assert_as_exact_as_pytorch(results, tensors, grad_out, p, eps=1e-12):
    """At most twice the error of plain PyTorch in the same dtype, plus 8 roundings of the largest value."""
    keep = keep_mask(seed_for(p) or 0, tensors[0].shape, p).to(grad_out.device)
    truth = defined(tensors, grad_out, p, keep, torch.float64, eps)
    dtype = tensors[0].dtype
    plain = defined(tensors, grad_out, p, keep, dtype, eps)
    z = tensors[1].detach().double() + tensors[0].detach().double() * keep / (1 - p)
    rstd = (z.var(-1, unbiased=False) + eps).rsqrt().max()
    names = ("out", "grad_x", "grad_residual", "grad_weight", "grad_bias")
    for name, ours, stock, exact in zip(names, results, plain, truth, strict=True):
        scale = exact.abs().max()
        if name in ("grad_x", "grad_residual"):  # a small difference of values of this size
            scale = max(scale, rstd * (grad_out.double() * tensors[2].double()).abs().max() / (1 - p))
        error, allowed = (ours - exact).abs().max(), 2 * (stock - exact).abs().max()
        allowed = allowed + 8 * torch.finfo(dtype).eps * scale
        assert ours.isfinite().all(), name
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


@pytest.mark.parametrize("p", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", COMPILED)
def test_output_and_gradients_match_the_reference(backend, shape, p):
    *tensors, grad_out = inputs(shape, device=device_of(backend))
    seed = seed_for(p, device_of(backend))
    results = run(lambda *t: seeded(backend, *t, seed, p, 1e-12), tensors, grad_out)
    assert_as_exact_as_pytorch(results, tensors, grad_out, p)


@needs_cpu
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("isa", [] if cpu.extension is None else cpu.extension.instruction_sets())
def test_every_instruction_set(isa, p):
    best = cpu.extension.instruction_set()
    cpu.extension.use_instruction_set(isa)
    try:
        for shape in SHAPES:
            *tensors, grad_out = inputs(shape)
            results = run(lambda *t: seeded("cpu", *t, seed_for(p), p, 1e-12), tensors, grad_out)
            assert_as_exact_as_pytorch(results, tensors, grad_out, p)
    finally:
        cpu.extension.use_instruction_set(best)


@needs_cuda
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("param_dtype", [None, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_half_precision_on_cuda(shape, dtype, param_dtype, p):
    *tensors, grad_out = inputs(shape, device=CUDA_DEVICE, dtype=dtype, param_dtype=param_dtype)
    results = run(lambda *t: seeded("cuda", *t, seed_for(p, CUDA_DEVICE), p, 1e-5), tensors, grad_out)
    assert [r.dtype for r in results] == [dtype, *(t.dtype for t in tensors)]
    assert_as_exact_as_pytorch(results, tensors, grad_out, p, eps=1e-5)


@needs_cuda
def test_half_precision_x_and_float32_residual_on_cuda():
    x, residual, weight, bias, grad_out = inputs((64, 768), device=CUDA_DEVICE)
    x = x.detach().bfloat16().requires_grad_()
    tensors = (x, residual, weight, bias)
    for p in (0.0, 0.1):
        results = run(lambda *t, p=p: seeded("cuda", *t, seed_for(p, CUDA_DEVICE), p, 1e-12), tensors, grad_out)
        keep = keep_mask(seed_for(p) or 0, x.shape, p).to(x.device)
        truth = defined(tensors, grad_out, p, keep, torch.float64)
        assert [r.dtype for r in results] == [torch.float32, torch.bfloat16, *[torch.float32] * 3]
        torch.testing.assert_close(results[0].double(), truth[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(results[1].double(), truth[1], rtol=1e-2, atol=1e-2)


@needs_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU, which alone captures graphs")
def test_replays_in_a_cuda_graph():
    *tensors, grad_out = inputs((64, 384), device="cuda")
    seed = seed_for(0.5, "cuda")

    def call():
        return run(lambda *t: seeded("cuda", *t, seed, 0.5, 1e-12), tensors, grad_out)

    call()  # a warm-up, as every capture needs
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    for value in (3, 1 << 40):
        seed.fill_(value)
        graph.replay()
        keep = keep_mask(value, (64, 384), 0.5).to("cuda")
        truth = defined(tensors, grad_out, 0.5, keep, torch.float64)
        for ours, exact in zip(results, truth, strict=True):
            torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-4)


@needs_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU, which alone captures graphs")
def test_every_replay_of_a_cuda_graph_draws_its_own_seed():
    *tensors, _ = inputs((64, 384), device="cuda", grad=False)
    ek.ops.dropout_add_layer_norm(*tensors, dropout_p=0.5, backend="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ek.ops.dropout_add_layer_norm(*tensors, dropout_p=0.5, backend="cuda")
    graph.replay()
    first = out.clone()
    graph.replay()
    assert not torch.equal(first, out)


@pytest.mark.parametrize("backend", COMPILED)
def test_strided_and_misaligned_tensors(backend):
    shape = (33, 64)
    x, residual, weight, bias, grad_out = inputs(shape, device=device_of(backend), grad=False)
    truth = seeded(backend, x, residual, weight, bias, None, 0.0, 1e-12)

    def misaligned(t):
        flat = torch.empty(t.numel() + 1, device=t.device)[1:].view(t.shape)
        return flat.copy_(t)

    variants = (lambda t: t.t().contiguous().t(), lambda t: t.repeat_interleave(2, -1)[..., ::2], misaligned)
    for change in variants:
        tensors = [change(t).requires_grad_() for t in (x, residual)] + [
            (misaligned(t) if change is misaligned else t.clone()).requires_grad_() for t in (weight, bias)
        ]
        results = run(lambda *t: seeded(backend, *t, None, 0.0, 1e-12), tensors, change(grad_out))
        torch.testing.assert_close(results[0], truth, rtol=1e-6, atol=1e-6)
        assert_as_exact_as_pytorch(results, tensors, grad_out, 0.0)
    # A gradient that sum() makes has stride 0.
    x.requires_grad_()
    seeded(backend, x, residual, weight, bias, None, 0.0, 1e-12).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("backend", COMPILED)
def test_large_mean_does_not_cancel(backend):
    *tensors, grad_out = inputs((8, 256), device=device_of(backend))
    with torch.no_grad():
        tensors[1] += 1000.0
    results = run(lambda *t: seeded(backend, *t, None, 0.0, 1e-12), tensors, grad_out)
    assert_as_exact_as_pytorch(results, tensors, grad_out, 0.0)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8)])
def test_no_rows(backend, shape):
    *tensors, grad_out = inputs(shape, device=device_of(backend))
    for p in (0.0, 0.1):
        seed = seed_for(p, device_of(backend))
        out, *grads = run(lambda *t, p=p, seed=seed: seeded(backend, *t, seed, p, 1e-12), tensors, grad_out)
        assert out.shape == shape
        assert [g.shape for g in grads] == [t.shape for t in tensors]
        assert not grads[2].any()
        assert not grads[3].any()


@needs_cpu
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (7, 13), (100, 384)])
def test_kernels_overwrite_poisoned_outputs(shape, p):
    x, residual, weight, bias, grad_out = inputs(shape, grad=False)
    rows, cols = shape
    seed = seed_for(p)
    nan = float("nan")
    # A guard of one value before and after each output must survive.
    buffers = {n: torch.full((rows * cols + 2,), nan) for n in ("out", "grad_x", "grad_residual")}
    buffers |= {n: torch.full((rows + 2,), nan) for n in ("mean", "rstd")}
    buffers |= {n: torch.full((cols + 2,), nan) for n in ("grad_weight", "grad_bias")}
    at = {name: buffer[1:].data_ptr() for name, buffer in buffers.items()}
    seed_at = 0 if seed is None else seed.data_ptr()
    given = [t.data_ptr() for t in (x, residual, weight, bias)]
    cpu.extension.dropout_add_layer_norm_forward(
        rows, cols, *given, seed_at, p, 1e-12, at["out"], at["mean"], at["rstd"]
    )
    cpu.extension.dropout_add_layer_norm_backward(
        rows, cols, grad_out.data_ptr(), *given[:3], at["mean"], at["rstd"], seed_at, p,
        at["grad_x"] if p else 0, at["grad_residual"], at["grad_weight"], at["grad_bias"],
    )  # fmt: skip
    for name, buffer in buffers.items():
        assert buffer[[0, -1]].isnan().all(), name
        if p or name != "grad_x":
            assert not buffer[1:-1].isnan().any(), name
    tensors = [t.requires_grad_() for t in (x, residual, weight, bias)]
    results = run(lambda *t: seeded("cpu", *t, seed, p, 1e-12), tensors, grad_out)
    names = ("out", "grad_x" if p else "grad_residual", "grad_residual", "grad_weight", "grad_bias")
    for name, result in zip(names, results, strict=True):
        assert torch.equal(buffers[name][1:-1], result.flatten()), name


@needs_cuda
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (7, 13), (33, 384), (2, 1843)])
def test_cuda_writes_every_value_and_none_beside_them(monkeypatch, shape, p):
    x, residual, weight, bias, grad_out = inputs(shape, device=CUDA_DEVICE, grad=False)
    seed = seed_for(p, CUDA_DEVICE)
    guarded = Guarded(monkeypatch)
    _, mean, rstd = cuda.dropout_add_layer_norm.forward(x, residual, weight, bias, seed, p, 1e-12)
    cuda.dropout_add_layer_norm.backward(grad_out, x, residual, weight, mean, rstd, seed, p)
    guarded.check(9 if p else 8)  # three of forward; grad_x where it has its own, four gradients, and partial sums


@needs_cuda
@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (40, 13), (700, 64), (7, 600), (5, 900), (3, 4099)], ids=str)
def test_cuda_sums_the_columns_of_the_gradient_of_x(shape, dtype, p):
    x, residual, weight, bias, grad_out = inputs(shape, device=CUDA_DEVICE, grad=False)
    x, seed = x.to(dtype), seed_for(p, CUDA_DEVICE)
    _, mean, rstd = cuda.dropout_add_layer_norm.forward(x, residual, weight, bias, seed, p, 1e-5)
    *_, columns = cuda.dropout_add_layer_norm.backward(grad_out, x, residual, weight, mean, rstd, seed, p)
    keep = keep_mask(seed_for(p) or 0, shape, p).to(CUDA_DEVICE)
    tensors = [t.detach().requires_grad_() for t in (x, residual, weight, bias)]
    grad_x = defined(tensors, grad_out, p, keep, torch.float64, 1e-5)[1]
    assert columns.dtype == dtype
    floor = 16 * torch.finfo(torch.float32).eps * grad_x.abs().sum(0) + 1e-5
    error = (columns - grad_x.sum(0)).abs()
    assert (error <= torch.finfo(dtype).eps * grad_x.sum(0).abs() + floor).all()


@pytest.mark.parametrize("backend", COMPILED)
def test_seeds_come_from_torch(backend):
    *tensors, _ = inputs((16, 384), device=device_of(backend))

    def call():
        return ek.ops.dropout_add_layer_norm(*tensors, dropout_p=0.1, backend=backend)

    torch.manual_seed(3)
    first, second = call(), call()
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(first, call())
    assert torch.equal(second, call())


@pytest.mark.parametrize("backend", COMPILED)
def test_checkpointing_replays_the_mask(backend):
    *tensors, grad_out = inputs((16, 384), device=device_of(backend))

    def call(*t):
        return ek.ops.dropout_add_layer_norm(*t, dropout_p=0.5, backend=backend)

    torch.manual_seed(5)
    plain = run(call, tensors, grad_out)
    torch.manual_seed(5)
    again = run(lambda *t: checkpoint(call, *t, use_reentrant=False), tensors, grad_out)
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", [*COMPILED, "reference"])
def test_without_dropout_it_is_layer_norm_of_the_sum(backend):
    *tensors, _ = inputs((16, 384), device=device_of(backend))
    state = torch.get_rng_state()
    out = ek.ops.dropout_add_layer_norm(*tensors, eps=1e-5, backend=backend)
    assert torch.equal(state, torch.get_rng_state())  # evaluation draws nothing
    assert torch.equal(out, ek.ops.dropout_add_layer_norm(*tensors, eps=1e-5, backend=backend))
    stock = F.layer_norm(tensors[0] + tensors[1], (384,), tensors[2], tensors[3], 1e-5)
    torch.testing.assert_close(out, stock, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("shape", [(512, 384), (37, 1843), (5000, 7)], ids=str)
@pytest.mark.parametrize("backend", COMPILED)
def test_results_are_bitwise_equal_in_every_run(backend, shape):
    *tensors, grad_out = inputs(shape, device=device_of(backend))
    seed = seed_for(0.1, device_of(backend))
    results = [run(lambda *t: seeded(backend, *t, seed, 0.1, 1e-12), tensors, grad_out) for _ in range(5)]
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_cpu
def test_only_one_openmp_runtime_is_loaded():
    code = (
        "import torch\n"
        "def runtimes():\n"
        "    return {l.split()[-1] for l in open('/proc/self/maps') if 'gomp' in l or 'iomp' in l}\n"
        "before = runtimes()\n"
        "import earlybert_kernels\n"
        "assert runtimes() == before, (before, runtimes())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("backend", COMPILED)
def test_opcheck(backend, p):
    x, residual, weight, bias, _ = inputs((6, 5, 48), device=device_of(backend))
    torch.library.opcheck(
        getattr(torch.ops.earlybert.dropout_add_layer_norm, backend),
        (x, residual, weight, bias, seed_for(p, device_of(backend)), p, 1e-12),
    )
    with torch.no_grad():
        _, mean, rstd = getattr(torch.ops.earlybert.dropout_add_layer_norm, backend)(
            x, residual, weight, bias, seed_for(p, device_of(backend)), p, 1e-12
        )
    x, residual, weight = x.detach(), residual.detach(), weight.detach()
    arguments = (torch.randn_like(x), x, residual, weight, mean, rstd, seed_for(p, device_of(backend)), p)
    torch.library.opcheck(getattr(torch.ops.earlybert.dropout_add_layer_norm_backward, backend), arguments)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize("backend", COMPILED)
def test_compiles_into_one_graph(backend, dynamic, forced):
    torch._dynamo.reset()

    def double(*tensors, p):
        return 2 * ek.ops.dropout_add_layer_norm(*tensors, dropout_p=p, backend=backend if forced else None)

    compiled = torch.compile(double, fullgraph=True, dynamic=dynamic)
    for rows in (4, 9):
        *tensors, grad_out = inputs((rows, 64), device=device_of(backend))
        for a, b in zip(
            run(lambda *t: compiled(*t, p=0.0), tensors, grad_out),
            run(lambda *t: double(*t, p=0.0), tensors, grad_out),
            strict=True,
        ):
            torch.testing.assert_close(a, b)
        out, grad_x, *_ = run(lambda *t: compiled(*t, p=0.5), tensors, grad_out)
        assert not torch.equal(out, compiled(*tensors, p=0.5))
        assert 0.3 < (grad_x == 0).float().mean() < 0.7


@pytest.mark.parametrize("backend", COMPILED)
def test_a_second_derivative_is_refused_and_nothing_is_saved_without_gradients(backend):
    x, residual, weight, bias, grad_out = inputs((4, 8), device=device_of(backend))
    out = seeded(backend, x, residual, weight, bias, None, 0.0, 1e-12)
    (grad,) = torch.autograd.grad(out, x, grad_out, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        grad.sum().backward()
    with torch.no_grad():
        assert seeded(backend, x, residual, weight, bias, None, 0.0, 1e-12).grad_fn is None


@pytest.mark.parametrize("keep", [True, False])
def test_gradcheck_of_the_reference(keep):
    x, residual, weight, bias, _ = inputs((3, 5), dtype=torch.float64)
    mask = keep_mask(1, (3, 5), 0.4) if keep else None
    p = 0.4 if keep else 0.0
    torch.autograd.gradcheck(
        lambda *t: reference.dropout_add_layer_norm(*t, dropout_p=p, eps=1e-5, keep=mask),
        (x, residual, weight, bias),
    )


def test_reference_arithmetic_is_at_least_float32():
    x, residual, weight, bias, _ = inputs((3, 384), dtype=torch.bfloat16, grad=False)
    out = reference.dropout_add_layer_norm(x, residual, weight, bias)
    exact = reference.dropout_add_layer_norm(*(t.double() for t in (x, residual, weight, bias)))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-6)  # one rounding, at the end
    assert reference.dropout_add_layer_norm(x, residual.float(), weight, bias).dtype == torch.float32


@needs_cpu
def test_other_dtypes_fall_to_the_reference():
    *tensors, _ = inputs((3, 8), dtype=torch.float64)
    assert ek.ops.dropout_add_layer_norm(*tensors).dtype == torch.float64
    with pytest.raises(RuntimeError, match="it takes float32 tensors"):
        ek.ops.dropout_add_layer_norm(*tensors, backend="cpu")


@pytest.mark.parametrize(("backend", "module"), [("cpu", cpu), ("cuda", cuda)])
def test_a_forced_backend_that_is_absent_raises(backend, module, monkeypatch):
    monkeypatch.setattr(module, "missing", "left out by this test")
    *tensors, _ = inputs((3, 8))
    with pytest.raises(RuntimeError, match="left out by this test"):
        ek.ops.dropout_add_layer_norm(*tensors, backend=backend)
    with ek.use_backend(backend), pytest.raises(RuntimeError, match="left out by this test"):
        ek.ops.dropout_add_layer_norm(*tensors)
    assert backend not in ek.ops.backends(NAME)


def test_wrong_arguments():
    x, residual, weight, bias, _ = inputs((3, 8))
    call = ek.ops.dropout_add_layer_norm
    with pytest.raises(ValueError, match=r"residual has shape \(2, 8\)"):
        call(x, residual[:2], weight, bias)
    with pytest.raises(ValueError, match=r"weight has shape \(7,\)"):
        call(x, residual, weight[:7], bias)
    with pytest.raises(ValueError, match="bias has shape"):
        call(x, residual, weight, bias[None])
    with pytest.raises(ValueError, match=r"expected \(..., hidden size\)"):
        call(x[:, :0], residual[:, :0], weight[:0], bias[:0])
    with pytest.raises(ValueError, match=r"dropout_p is 1.0"):
        call(x, residual, weight, bias, dropout_p=1.0)
    with pytest.raises(TypeError, match="expected a floating dtype"):
        call(torch.ones(3, 8, dtype=torch.int64), residual, weight, bias)
    with pytest.raises(ValueError, match="one device"):
        call(x, residual, weight.to("meta"), bias)
