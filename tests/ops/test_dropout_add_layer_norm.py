import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import earlybert_kernels as ek
from earlybert_kernels import reference
from earlybert_kernels.backends import cpu, cuda
from earlybert_kernels.reference.counter_rng import keep_mask
from tests.helpers.add_norm_case import SHAPES, assert_as_exact_as_pytorch, inputs, run, seed_for, seeded
from tests.helpers.covering import every_pair
from tests.helpers.targets import device_of

NAME = "dropout_add_layer_norm"


def needs(backend):
    reason = {"cpu": cpu, "cuda": cuda}[backend].unavailable()
    return pytest.param(backend, marks=pytest.mark.skipif(reason is not None, reason=f"{backend}: {reason}"))


COMPILED = [needs("cpu"), needs("cuda")]
needs_cpu = pytest.mark.skipif(cpu.unavailable() is not None, reason=f"cpu: {cpu.unavailable()}")


@every_pair(backend=COMPILED, shape=SHAPES, p=[0.0, 0.1, 0.7])
def test_output_and_gradients_match_the_reference(backend, shape, p):
    *tensors, grad_out = inputs(shape, device=device_of(backend))
    seed = seed_for(p, device_of(backend))
    results = run(lambda *t: seeded(backend, *t, seed, p, 1e-12), tensors, grad_out)
    assert_as_exact_as_pytorch(results, tensors, grad_out, p)


@needs_cpu
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("isa", [] if cpu.extension is None else sorted(cpu.extension.instruction_sets()))
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
    runs = 2 if backend == "cuda" and cuda.EMULATED else 5  # the emulator's blocks always run in one order
    results = [run(lambda *t: seeded(backend, *t, seed, 0.1, 1e-12), tensors, grad_out) for _ in range(runs)]
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("backend", COMPILED)
def test_opcheck(backend, p):
    x, residual, weight, bias, _ = inputs((6, 5, 48), device=device_of(backend))
    torch.library.opcheck(
        getattr(torch.ops.earlybert.dropout_add_layer_norm, backend),
        (x, residual, weight, bias, seed_for(p, device_of(backend)), p, 1e-12, True),
    )
    with torch.no_grad():
        _, mean, rstd = getattr(torch.ops.earlybert.dropout_add_layer_norm, backend)(
            x, residual, weight, bias, seed_for(p, device_of(backend)), p, 1e-12, True
        )
    x, residual, weight = x.detach(), residual.detach(), weight.detach()
    arguments = (torch.randn_like(x), x, residual, weight, mean, rstd, seed_for(p, device_of(backend)), p)
    torch.library.opcheck(getattr(torch.ops.earlybert.dropout_add_layer_norm_backward, backend), arguments)


@every_pair(backend=COMPILED, forced=[True, False], dynamic=[False, True])
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
def test_a_forced_backend_that_is_absent_raises(backend, module, monkeypatch, request):
    monkeypatch.setattr(module, "missing", "left out by this test")
    ask_again = getattr(module.unavailable, "cache_clear", lambda: None)  # CUDA's is asked once a process
    ask_again()
    request.addfinalizer(ask_again)
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
