"""CUDA's attention on packings, masks and gates drawn at random. (The emulator counts what each launch stores.)"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earlybert_kernels.backends import cuda
from tests.helpers.attention_case import Case, run

if cuda.unavailable() is not None:
    pytest.skip(cuda.unavailable(), allow_module_level=True)

lengths = st.lists(st.integers(0, 40) | st.sampled_from([63, 64, 65, 127, 129]), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_packings_masks_and_gates(data):
    heads, size = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([32, 64]))
    keys = tuple(data.draw(lengths.filter(any)))
    queries = data.draw(st.none() | st.tuples(*(st.integers(0, min(2 * n, 70)) for n in keys)))
    mask = data.draw(st.none() | st.lists(st.booleans(), min_size=heads, max_size=heads))
    gates = data.draw(st.none() | st.lists(st.sampled_from([0.0, 0.5, -2.0, 1.0]), min_size=heads, max_size=heads))
    dtype = data.draw(st.sampled_from([torch.float16, torch.bfloat16]))
    torch.manual_seed(data.draw(st.integers(0, 999)))
    case = Case(keys, heads, size, dtype, queries, mask, gates, data.draw(st.sampled_from([0.0, 0.3])))
    grad_out, arguments = case.inputs()
    if mask is not None:
        for t in (grad_out, *arguments[:3]):
            t[:, ~case.mask] = float("nan")
    torch.use_deterministic_algorithms(True, warn_only=True)  # what is allocated is NaN
    try:
        results = run(cuda.attention, grad_out, arguments)
    finally:
        torch.use_deterministic_algorithms(False)
    case.check(results)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("heads", [2, 5])  # fewer blocks than the emulator's GPU takes: one for each tile; else for all
def test_sequences_of_several_tiles_of_keys(heads, size):
    torch.manual_seed(heads)
    gates = [0.5, -2.0, 1.0, 0.0, 3.0][:heads]
    case = Case((300, 31, 129), heads, size, torch.bfloat16, (257, 33, 0), gates=gates, p=0.1)
    grad_out, arguments = case.inputs()
    first, again = (run(cuda.attention, grad_out, arguments) for _ in range(2))
    case.check(first)
    assert all(torch.equal(*both) for both in zip(first, again, strict=True))


@pytest.mark.parametrize("p", [0.96875, 0.969, 0.98])
def test_probabilities_about_those_that_take_another_comparison(p):
    case = Case((40, 70), 2, 64, torch.float16, gates=[0.5, -2.0], p=p)
    grad_out, arguments = case.inputs()
    case.check(run(cuda.attention, grad_out, arguments))


def test_what_it_cannot_take_is_said():
    _, arguments = Case((3, 5), dtype=torch.float16).inputs()
    q, k, v = arguments[:3]
    assert "got float32" in cuda.attention.refuses(q.float(), k.float(), v.float(), max_seqlen=5)
    assert "heads of 32 or 64 values, got 16" in cuda.attention.refuses(q[..., :16], k, v, max_seqlen=5)
    assert "sequences of up to" in cuda.attention.refuses(q, k, v, max_seqlen=4000)
    assert cuda.attention.refuses(q, k, v, max_seqlen=5) is None
    arguments[4] = arguments[6] = 513
    arguments[:3] = (torch.zeros(513, 2, 32, dtype=torch.float16, device=q.device) for _ in range(3))
    with pytest.raises(RuntimeError, match="attention forward .cuda.*most keys 513.*the sequences are too long"):
        cuda.attention.forward(*arguments)
