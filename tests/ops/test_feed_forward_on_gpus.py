"""The feed-forward block of the backends on GPUs against its definition in float64, as the dispatcher has it."""

import pytest
import torch

import earlybert_kernels as ek
from earlybert_kernels import reference
from earlybert_kernels.backends import cuda
from tests.helpers.accuracy import assert_as_exact_as_pytorch, assert_defined_by, results

pytestmark = pytest.mark.usefixtures("fresh_memory_is_nan")

KEPT = {"all": None, "some": [0, 2, 3, 20, 21, 22, 49], "one": [7], "none": []}
TOKENS, HIDDEN, NEURONS = 37, 24, 50


def inputs(tokens=TOKENS, hidden=HIDDEN, neurons=NEURONS):
    shapes = [(tokens, hidden), (neurons, hidden), (neurons,), (hidden, neurons), (hidden,), (neurons,)]
    return [torch.randn(shape) * (0.3 if len(shape) == 2 else 1) for shape in shapes]


def mask_of(kept):
    if KEPT[kept] is None:
        return None
    return torch.zeros(NEURONS, dtype=torch.bool).index_fill(0, torch.tensor(KEPT[kept], dtype=torch.int64), True)


def defined(*tensors, mask=None, activation="gelu"):
    *weights, gates = tensors
    return reference.feed_forward(*weights, neuron_mask=mask, neuron_gates=gates, activation=activation)


def compiled(target, *tensors, mask=None, gated=True, activation="gelu"):
    """Triton's kernels follow a mask, CUDA's take the indices of what is computed."""
    *weights, gates = tensors
    active = None if mask is None else mask.to(target.device)
    if active is not None and target.backend == "cuda":
        active = active.nonzero().squeeze(1)
    gates = gates.float() if gated else None
    return getattr(torch.ops.earlybert.feed_forward, target.backend)(*weights, active, gates, activation, True)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kept", KEPT)
def test_output_and_gradients(gpu_target, kept, dtype):
    mask = mask_of(kept)
    tensors = [t.to(dtype).float() for t in inputs()]
    ours = results(lambda *t: compiled(gpu_target, *t, mask=mask), tensors, dtype, gpu_target.device)
    plain = results(lambda *t: defined(*t, mask=mask), tensors, dtype)
    truth = results(lambda *t: defined(*t, mask=mask), tensors, torch.float64)
    assert ours[0].dtype == dtype
    assert_as_exact_as_pytorch(ours, plain, truth, dtype)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 1843), (33, 16, 64)], ids=str)
def test_odd_shapes(gpu_target, shape):
    assert_defined_by(lambda *t: compiled(gpu_target, *t), defined, inputs(*shape), gpu_target.device)


@pytest.mark.parametrize("activation", ["gelu_tanh", "relu"])
def test_other_activations(gpu_target, activation):
    def ours(*tensors):
        *weights, gates = tensors
        options = {"neuron_gates": gates, "activation": activation, "backend": gpu_target.backend}
        return ek.ops.feed_forward(*weights, **options)

    assert_defined_by(ours, lambda *t: defined(*t, activation=activation), inputs(), gpu_target.device)


def test_no_gates(gpu_target):
    def plain(*tensors):
        return reference.feed_forward(*tensors, neuron_mask=mask_of("some"))

    def ours(*tensors):
        return compiled(gpu_target, *tensors, None, mask=mask_of("some"), gated=False)

    assert_defined_by(ours, plain, inputs()[:5], gpu_target.device)


def test_no_tokens(gpu_target):
    leaves = [t.to(gpu_target.device).requires_grad_() for t in inputs(tokens=0)]
    out = compiled(gpu_target, *leaves)
    assert out.shape == (0, HIDDEN)
    assert not any(gradient.any() for gradient in torch.autograd.grad(out.sum(), leaves))


def test_pruned_neurons_are_not_read(gpu_target):
    mask = mask_of("some")
    tensors = inputs()
    poisoned = [t.clone() for t in tensors]
    for number in (1, 2, 5):
        poisoned[number][~mask] = float("nan")
    poisoned[3][:, ~mask] = float("nan")

    def run(given):
        return results(lambda *t: compiled(gpu_target, *t, mask=mask), given, torch.float32, gpu_target.device)

    for a, b in zip(run(poisoned), run(tensors), strict=True):
        assert torch.equal(a, b)


def test_repeated_runs_are_bitwise_equal(gpu_target):
    def run():
        return results(lambda *t: compiled(gpu_target, *t, mask=mask_of("some")), tensors, torch.float32, device)

    tensors, device = inputs(), gpu_target.device
    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.skipif(cuda.unavailable() is not None, reason=f"cuda: {cuda.unavailable()}")
def test_cuda_refuses_a_mask_and_says_who_takes_it():
    device = "cpu" if cuda.EMULATED else "cuda"
    *weights, _ = (t.to(device) for t in inputs())
    mask = mask_of("some").to(device)
    with pytest.raises(RuntimeError, match="takes active units as int64 indices; a mask, which only the device knows"):
        ek.ops.feed_forward(*weights, neuron_mask=mask, backend="cuda")
