"""The kernels of this backend alone: half precision, CUDA graphs, memory around results, and column sums."""

import pytest
import torch

import earlybert_kernels as ek
from earlybert_kernels.backends import cuda
from earlybert_kernels.reference.counter_rng import keep_mask
from tests.helpers.add_norm_case import SHAPES, assert_as_exact_as_pytorch, defined, inputs, run, seed_for, seeded
from tests.helpers.covering import every_pair
from tests.helpers.guarded import Guarded
from tests.helpers.targets import device_of

if cuda.unavailable() is not None:
    pytest.skip(f"cuda: {cuda.unavailable()}", allow_module_level=True)

DEVICE = device_of("cuda")
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch sees no CUDA GPU, which alone captures graphs"
)


@every_pair(
    shape=[*SHAPES, (5, 300), (2, 1020)],  # multiples of 4 and not of 8
    dtype=[torch.float16, torch.bfloat16],
    param_dtype=[None, torch.float32],
    p=[0.0, 0.1],
)
def test_half_precision(shape, dtype, param_dtype, p):
    *tensors, grad_out = inputs(shape, device=DEVICE, dtype=dtype, param_dtype=param_dtype)
    results = run(lambda *t: seeded("cuda", *t, seed_for(p, DEVICE), p, 1e-5), tensors, grad_out)
    assert [r.dtype for r in results] == [dtype, *(t.dtype for t in tensors)]
    assert_as_exact_as_pytorch(results, tensors, grad_out, p, eps=1e-5)


def test_half_precision_x_and_float32_residual():
    x, residual, weight, bias, grad_out = inputs((64, 768), device=DEVICE)
    x = x.detach().bfloat16().requires_grad_()
    tensors = (x, residual, weight, bias)
    for p in (0.0, 0.1):
        results = run(lambda *t, p=p: seeded("cuda", *t, seed_for(p, DEVICE), p, 1e-12), tensors, grad_out)
        keep = keep_mask(seed_for(p) or 0, x.shape, p).to(x.device)
        truth = defined(tensors, grad_out, p, keep, torch.float64)
        assert [r.dtype for r in results] == [torch.float32, torch.bfloat16, *[torch.float32] * 3]
        torch.testing.assert_close(results[0].double(), truth[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(results[1].double(), truth[1], rtol=1e-2, atol=1e-2)


@every_pair(dtype=[torch.float16, torch.bfloat16], which=range(5), p=[0.0, 0.4])
def test_half_precision_off_16_bytes(dtype, which, p):
    """Rows of 64 values of which one tensor begins 8 bytes behind a multiple of 16."""
    tensors = list(inputs((9, 64), device=DEVICE, dtype=dtype, grad=False))
    behind = torch.empty(tensors[which].numel() + 4, dtype=dtype, device=DEVICE)[4:]
    tensors[which] = behind.view(tensors[which].shape).copy_(tensors[which])
    assert tensors[which].data_ptr() % 16 == 8
    *tensors, grad_out = tensors
    tensors = [t.requires_grad_() for t in tensors]
    results = run(lambda *t: seeded("cuda", *t, seed_for(p, DEVICE), p, 1e-5), tensors, grad_out)
    assert_as_exact_as_pytorch(results, tensors, grad_out, p, eps=1e-5)


@needs_gpu
def test_replays_in_a_cuda_graph():
    *tensors, grad_out = inputs((64, 384), device=DEVICE)
    seed = seed_for(0.5, DEVICE)

    def call():
        return run(lambda *t: seeded("cuda", *t, seed, 0.5, 1e-12), tensors, grad_out)

    call()  # a warm-up, as every capture needs
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    for value in (3, 1 << 40):
        seed.fill_(value)
        graph.replay()
        keep = keep_mask(value, (64, 384), 0.5).to(DEVICE)
        truth = defined(tensors, grad_out, 0.5, keep, torch.float64)
        for ours, exact in zip(results, truth, strict=True):
            torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-4)


@needs_gpu
def test_every_replay_of_a_cuda_graph_draws_its_own_seed():
    *tensors, _ = inputs((64, 384), device=DEVICE, grad=False)
    ek.ops.dropout_add_layer_norm(*tensors, dropout_p=0.5, backend="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ek.ops.dropout_add_layer_norm(*tensors, dropout_p=0.5, backend="cuda")
    graph.replay()
    first = out.clone()
    graph.replay()
    assert not torch.equal(first, out)


@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (7, 13), (33, 384), (2, 1843)])
def test_writes_every_value_and_none_beside_them(monkeypatch, shape, p):
    x, residual, weight, bias, grad_out = inputs(shape, device=DEVICE, grad=False)
    seed = seed_for(p, DEVICE)
    guarded = Guarded(monkeypatch)
    _, mean, rstd, _ = cuda.dropout_add_layer_norm.forward(x, residual, weight, bias, seed, p, 1e-12)
    cuda.dropout_add_layer_norm.backward(grad_out, x, residual, weight, mean, rstd, seed, p)
    guarded.check(9 if p else 8)  # three of forward; grad_x where it has its own, four gradients, and partial sums


@every_pair(
    shape=[(1, 1), (40, 13), (700, 64), (7, 600), (5, 900), (3, 4099)],
    dtype=[torch.float32, torch.bfloat16],
    p=[0.0, 0.4],
)
def test_sums_the_columns_of_the_gradient_of_x(shape, dtype, p):
    x, residual, weight, bias, grad_out = inputs(shape, device=DEVICE, grad=False)
    x, seed = x.to(dtype), seed_for(p, DEVICE)
    _, mean, rstd, _ = cuda.dropout_add_layer_norm.forward(x, residual, weight, bias, seed, p, 1e-5)
    *_, columns, _ = cuda.dropout_add_layer_norm.backward(grad_out, x, residual, weight, mean, rstd, seed, p)
    keep = keep_mask(seed_for(p) or 0, shape, p).to(DEVICE)
    tensors = [t.detach().requires_grad_() for t in (x, residual, weight, bias)]
    grad_x = defined(tensors, grad_out, p, keep, torch.float64, 1e-5)[1]
    assert columns.dtype == dtype
    floor = 16 * torch.finfo(torch.float32).eps * grad_x.abs().sum(0) + 1e-5
    error = (columns - grad_x.sum(0)).abs()
    assert (error <= torch.finfo(dtype).eps * grad_x.sum(0).abs() + floor).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (9, 13), (700, 12), (7, 384), (5, 900), (2, 1843), (1, 4100)], ids=str)
def test_casts_the_residual(monkeypatch, shape, dtype):
    x, residual, weight, bias, grad_out = inputs(shape, device=DEVICE, grad=False)
    x, seed = x.to(dtype), seed_for(0.1, DEVICE)
    _, mean, rstd, _ = cuda.dropout_add_layer_norm.forward(x, residual, weight, bias, seed, 0.1, 1e-5)
    arguments = (grad_out, x, residual, weight, mean, rstd, seed, 0.1)
    *grads, absent = cuda.dropout_add_layer_norm.backward(*arguments)
    assert absent is None
    expected = residual.to(dtype)
    guarded = Guarded(monkeypatch)
    *same_grads, cast = cuda.dropout_add_layer_norm.backward(*arguments, cast_residual=True)
    guarded.check(7)  # five gradients, partial sums, and the residual
    assert torch.equal(cast, expected)
    assert all(torch.equal(a, b) for a, b in zip(same_grads, grads, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (9, 13), (700, 12), (7, 384), (5, 900), (2, 1843), (1, 4100)], ids=str)
def test_casts_the_output(monkeypatch, shape, dtype):
    x, residual, weight, bias, _ = inputs(shape, device=DEVICE, grad=False)
    arguments = (x.to(dtype), residual, weight, bias, seed_for(0.1, DEVICE), 0.1, 1e-5)
    *results, absent = cuda.dropout_add_layer_norm.forward(*arguments)
    assert absent is None
    expected = results[0].to(dtype)
    guarded = Guarded(monkeypatch)
    *same_results, cast = cuda.dropout_add_layer_norm.forward(*arguments, cast_out=True)
    guarded.check(4)  # the output, its cast and two statistics
    assert torch.equal(cast, expected)
    assert all(torch.equal(a, b) for a, b in zip(same_results, results, strict=True))
    of_one_dtype = (residual, *arguments[1:])
    assert cuda.dropout_add_layer_norm.forward(*of_one_dtype, cast_out=True)[3] is None
