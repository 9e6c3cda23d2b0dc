"""The CPU's linear layer on kept units, on which feed-forward, sublayers and masked-LM loss stand."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from earlybert_kernels.backends import cpu
from earlybert_kernels.reference.feed_forward import ACTIVATIONS
from tests.helpers.accuracy import assert_as_exact_as_pytorch
from tests.helpers.covering import every_pair
from tests.ops.conftest import ISAS

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=f"cpu: {cpu.unavailable()}")

#: tokens, in, out. Tiles are up to 14 x 32; panels hold 512 of what is summed and 384 columns. Up to 96 tokens whose
#: columns are neither picked nor scaled have a way of their own.
SHAPES = [(1, 1, 1), (3, 5, 7), (14, 32, 32), (15, 33, 31), (29, 513, 65), (61, 512, 800), (200, 1100, 17), (5, 3, 2)]
SHAPES += [(96, 70, 35), (97, 70, 35)]


def kept_of(size, picked):
    return torch.randperm(size)[: max(1, size * 2 // 3)].sort().values if picked else None


def case(tokens, size, out, picked_out=False, picked_in=False, scaled=False):
    out_units, in_units = kept_of(out, picked_out), kept_of(size, picked_in)
    columns = size if in_units is None else len(in_units)
    weight, bias = torch.randn(out, size), torch.randn(out)
    scale = torch.randn(columns) if scaled else None
    return torch.randn(tokens, columns), cpu.linear.Kept(weight, out_units, in_units, scale), bias


def defined(x, kept, bias, dtype, grad_y, activation="none"):
    """y and the gradients of x, weight, bias and scale, by autograd in `dtype`."""
    weight, scale = kept.weight, kept.in_scale
    leaves = [None if t is None else t.to(dtype).requires_grad_() for t in (x, weight, bias, scale)]
    x, weight, bias, scale = leaves
    rows = slice(None) if kept.out_units is None else kept.out_units
    columns = slice(None) if kept.in_units is None else kept.in_units
    h = x if activation == "none" else ACTIVATIONS[activation](x)
    y = F.linear(h if scale is None else h * scale, weight[rows][:, columns], bias[rows])
    return y, *torch.autograd.grad(y, [t for t in leaves if t is not None], grad_y.to(dtype))


@every_pair(
    isa=ISAS,
    shape=SHAPES,
    picked=[(False, False), (True, False), (False, True), (True, True)],
    scaled=[False, True],
    indirect=["isa"],
)
def test_output_and_gradients(isa, shape, picked, scaled):
    x, kept, bias = case(*shape, *picked, scaled)
    y, _ = cpu.linear.forward(x, kept, bias)
    grad_y = torch.randn(y.shape)
    grads = cpu.linear.backward(grad_y, x, kept)
    ours = (y, *(g for g in grads if g is not None))
    assert_as_exact_as_pytorch(ours, *(defined(x, kept, bias, t, grad_y) for t in (torch.float32, torch.float64)))
    if kept.out_units is not None:
        left_out = torch.ones(len(bias), dtype=torch.bool).index_fill(0, kept.out_units, False)
        assert not grads[1][left_out].any()
        assert not grads[2][left_out].any()


sizes = st.integers(1, 70) | st.sampled_from([127, 383, 385, 513])


@settings(max_examples=80, deadline=None, derandomize=True)
@given(tokens=sizes, size=sizes, out=sizes, picked=st.tuples(st.booleans(), st.booleans()), scaled=st.booleans(),
       seed=st.integers(0, 2**32 - 1))  # fmt: skip
def test_random_shapes_and_picks(tokens, size, out, picked, scaled, seed):
    torch.manual_seed(seed)
    x, kept, bias = case(tokens, size, out, *picked, scaled)
    y, _ = cpu.linear.forward(x, kept, bias)
    grad_y = torch.randn(y.shape)
    ours = (y, *(g for g in cpu.linear.backward(grad_y, x, kept) if g is not None))
    assert_as_exact_as_pytorch(ours, *(defined(x, kept, bias, t, grad_y) for t in (torch.float32, torch.float64)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_before_and_after(isa, activation):
    """In forward an activation comes after the layer, in backward it stands before it and is computed anew."""
    x, kept, bias = case(37, 50, 45, picked_out=True)
    y, preactivation = cpu.linear.forward(x, kept, bias, activation=activation)
    linear, _ = cpu.linear.forward(x, kept, bias)
    assert torch.equal(preactivation, linear)
    exact, plain = (ACTIVATIONS[activation](linear.to(t)) for t in (torch.float64, torch.float32))
    assert_as_exact_as_pytorch([y], [plain], [exact])
    grad_y = torch.randn(37, len(kept.out_units))
    grads = cpu.linear.backward(grad_y, None, kept, activation=activation, preactivation=x)
    truth, plain = (defined(x, kept, bias, t, grad_y, activation) for t in (torch.float64, torch.float32))
    assert_as_exact_as_pytorch(grads[:3], plain[1:], truth[1:])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_over_their_whole_range(isa, activation):
    x = torch.cat([torch.linspace(-20, 20, 40001), torch.tensor([-1e30, -1e4, 0.0, -0.0, 1e4, 1e30])])[:, None]
    kept = cpu.linear.Kept(torch.ones(1, 1))
    y, _ = cpu.linear.forward(x, kept, None, activation=activation)
    (slope, *_) = cpu.linear.backward(torch.ones_like(x), None, kept, activation=activation, preactivation=x)
    exact = x.double().requires_grad_()
    value = ACTIVATIONS[activation](exact)
    (exact_slope,) = torch.autograd.grad(value.sum(), exact)
    value = value.detach()
    assert ((y - value).abs() <= 1e-6 * value.abs() + 1e-7 * exact.detach().abs().clamp(max=8)).all()
    assert ((slope - exact_slope).abs() <= 2e-6).all()


def test_nan_and_infinity_are_not_hidden(isa):
    for activation in ("none", *ACTIVATIONS):
        y, _ = cpu.linear.forward(torch.tensor([[float("nan")], [1.0]]), cpu.linear.Kept(torch.ones(40, 1)), None,
                                  activation=activation)  # fmt: skip
        assert y[0].isnan().all()
        assert y[1].isfinite().all()
        y, _ = cpu.linear.forward(torch.full((1, 1), float("inf")), cpu.linear.Kept(torch.ones(3, 1)), None,
                                  activation=activation)  # fmt: skip
        assert (y == float("inf")).all()


def test_units_that_are_left_out_are_not_read():
    x, kept, bias = case(20, 60, 50, picked_out=True, picked_in=True, scaled=True)
    poisoned = torch.full_like(kept.weight, float("nan"))
    rows, columns = kept.out_units[:, None], kept.in_units
    poisoned[rows, columns] = kept.weight[rows, columns]
    poisoned_bias = torch.full_like(bias, float("nan")).index_copy(0, kept.out_units, bias[kept.out_units])
    own = kept._replace(weight=poisoned)
    assert torch.equal(cpu.linear.forward(x, own, poisoned_bias)[0], cpu.linear.forward(x, kept, bias)[0])
    grad_y = torch.randn(20, len(kept.out_units))
    for ours, plain in zip(cpu.linear.backward(grad_y, x, own), cpu.linear.backward(grad_y, x, kept), strict=True):
        assert torch.equal(ours, plain)


def test_picked_rows_added_gradients_and_strides():
    x, kept, bias = case(30, 24, 40)
    rows = torch.tensor([3, 3, 29, 0])
    wide = torch.randn(30, 100)
    wide[:, 7:31] = x
    strided = wide[:, 7:31]
    weight = kept.weight.t().contiguous().t()  # columns contiguous
    y, _ = cpu.linear.forward(strided, kept._replace(weight=weight), bias, x_rows=rows)
    assert torch.equal(y, cpu.linear.forward(x[rows], kept, bias)[0])
    grad_y = torch.randn(4, 40)
    base = torch.randn(4, 24)
    grad_x, grad_weight, *_ = cpu.linear.backward(grad_y.t().contiguous().t(), strided, kept, x_rows=rows,
                                                  grad_x=base.clone())  # fmt: skip
    plain_x, plain_weight, *_ = cpu.linear.backward(grad_y, x[rows], kept)
    torch.testing.assert_close(grad_x, base + plain_x)
    assert torch.equal(grad_weight, plain_weight)


@pytest.mark.parametrize("units", [[], [2]])
def test_few_or_no_kept_units(units):
    kept = cpu.linear.Kept(torch.randn(6, 5), torch.tensor(units, dtype=torch.int64))
    x, bias = torch.randn(4, 5), torch.randn(6)
    y, _ = cpu.linear.forward(x, kept, bias)
    assert y.shape == (4, len(units))
    grad_x, grad_weight, grad_bias, _ = cpu.linear.backward(torch.ones_like(y), x, kept)
    torch.testing.assert_close(grad_x, kept.weight[units].sum(0).expand(4, 5))
    for unit in range(6):
        expected = x.sum(0) if unit in units else torch.zeros(5)
        torch.testing.assert_close(grad_weight[unit], expected)
        assert grad_bias[unit] == (4.0 if unit in units else 0.0)
    second = cpu.linear.Kept(torch.randn(3, 6), in_units=torch.tensor(units, dtype=torch.int64))
    out, _ = cpu.linear.forward(y, second, None)
    torch.testing.assert_close(out, y @ second.weight[:, units].T)
    assert not cpu.linear.backward(torch.ones(4, 3), y, second)[1][:, [n for n in range(6) if n not in units]].any()


@pytest.mark.parametrize("tokens", [0, 1])
def test_no_tokens(tokens):
    x, kept, bias = case(tokens, 5, 6)
    y, _ = cpu.linear.forward(x, kept, bias)
    assert y.shape == (tokens, 6)
    grad_x, grad_weight, grad_bias, _ = cpu.linear.backward(torch.ones(tokens, 6), x, kept)
    assert grad_x.shape == (tokens, 5)
    torch.testing.assert_close(grad_bias, torch.full((6,), float(tokens)))
    torch.testing.assert_close(grad_weight, x.sum(0).expand(6, 5))


@pytest.mark.parametrize(("change", "message"), [("out_units", "kept unit: 6 is not in 0 to 5"),
                                                 ("in_units", "kept unit: -1 is not in 0 to 4")])  # fmt: skip
def test_indices_outside_are_refused_before_they_are_followed(change, message):
    wrong = torch.tensor([0, 6]) if change == "out_units" else torch.tensor([-1, 0, 1])
    kept = cpu.linear.Kept(torch.randn(6, 5), **{change: wrong})
    x = torch.randn(2, 5 if change == "out_units" else 3)
    with pytest.raises(IndexError, match=message):
        cpu.linear.forward(x, kept, None)
    with pytest.raises(IndexError, match="row of x: 2 is not in 0 to 1"):
        cpu.linear.forward(torch.randn(2, 5), cpu.linear.Kept(torch.randn(6, 5)), None, x_rows=torch.tensor([2]))
