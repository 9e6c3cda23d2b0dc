"""The feed-forward block of this backend against its definition in float64."""

import pytest
import torch
from accuracy import assert_as_exact_as_pytorch, assert_defined_by, results

import earlybert_kernels as ek
from earlybert_kernels import reference
from earlybert_kernels.backends import triton

if triton.unavailable() is not None:
    pytest.skip(triton.unavailable(), allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KEPT = {"all": None, "some": [0, 2, 3, 20, 21, 22, 49], "one": [7], "none": []}
TOKENS, HIDDEN, NEURONS = 37, 24, 50


def inputs():
    shapes = [(TOKENS, HIDDEN), (NEURONS, HIDDEN), (NEURONS,), (HIDDEN, NEURONS), (HIDDEN,), (NEURONS,)]
    return [torch.randn(shape) * (0.3 if len(shape) == 2 else 1) for shape in shapes]


def mask_of(kept):
    if KEPT[kept] is None:
        return None
    return torch.zeros(NEURONS, dtype=torch.bool).index_fill(0, torch.tensor(KEPT[kept], dtype=torch.int64), True)


def defined(*tensors, mask=None, activation="gelu"):
    *weights, gates = tensors
    return reference.feed_forward(*weights, neuron_mask=mask, neuron_gates=gates, activation=activation)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kept", KEPT)
def test_output_and_gradients(kept, dtype):
    mask = mask_of(kept)
    tensors = [t.to(dtype).float() for t in inputs()]

    def compiled(*leaves):
        *weights, gates = leaves
        on_device = None if mask is None else mask.to(DEVICE)
        gates = gates.float()
        return ek.ops.feed_forward(*weights, neuron_mask=on_device, neuron_gates=gates, backend="triton")

    ours = results(compiled, tensors, dtype, DEVICE)
    plain = results(lambda *t: defined(*t, mask=mask), tensors, dtype)
    truth = results(lambda *t: defined(*t, mask=mask), tensors, torch.float64)
    assert ours[0].dtype == dtype
    assert_as_exact_as_pytorch(ours, plain, truth, dtype)


@pytest.mark.parametrize("activation", ["gelu_tanh", "relu"])
def test_other_activations(activation):
    def compiled(*leaves):
        *weights, gates = leaves
        return ek.ops.feed_forward(*weights, neuron_gates=gates, activation=activation, backend="triton")

    assert_defined_by(compiled, lambda *t: defined(*t, activation=activation), inputs(), DEVICE)


def test_pruned_neurons_are_not_read():
    mask = mask_of("some")
    tensors = [t.to(DEVICE) for t in inputs()]
    poisoned = [t.clone() for t in tensors]
    for number in (1, 2, 5):
        poisoned[number][~mask] = float("nan")
    poisoned[3][:, ~mask] = float("nan")

    def run(tensors):
        *weights, gates = tensors
        return ek.ops.feed_forward(*weights, neuron_mask=mask.to(DEVICE), neuron_gates=gates, backend="triton")

    ours, theirs = (results(lambda *t: run(t), given, torch.float32, DEVICE) for given in (poisoned, tensors))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
