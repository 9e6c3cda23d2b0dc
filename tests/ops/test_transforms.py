"""Ways of differentiating that the kernels do not know are refused, in every op."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from earlybert_kernels import ops, use_backend

X = torch.linspace(-1, 1, 5 * 24).view(5, 24)
IN, OUT, BIAS, ONES = torch.ones(40, 24), torch.ones(24, 40), torch.zeros(40), torch.ones(24)
OFFSETS, LABELS, IDS = torch.tensor([0, 5], dtype=torch.int32), torch.arange(5), torch.zeros(5, dtype=torch.int64)
SQUARE = (torch.eye(24), ONES)
CALLS = {
    "attention": lambda x: ops.attention(x.view(5, 4, 6), X.view(5, 4, 6), X.view(5, 4, 6), OFFSETS, 5),
    "attention_sublayer": lambda x: ops.attention_sublayer(x, OFFSETS, 5, *SQUARE * 4, ONES, ONES, head_size=6),
    "dropout_add_layer_norm": lambda x: ops.dropout_add_layer_norm(X, x, ONES, ONES),
    "embedding_layer_norm": lambda x: ops.embedding_layer_norm(IDS, IDS, IDS, x, X, X, ONES, ONES),
    "feed_forward": lambda x: ops.feed_forward(x, IN, BIAS, OUT, ONES),
    "feed_forward_sublayer": lambda x: ops.feed_forward_sublayer(x, IN, BIAS, OUT, ONES, ONES, ONES),
    "masked_lm_loss": lambda x: ops.masked_lm_loss(x, LABELS, IN, BIAS),
}
each_op = pytest.mark.parametrize("op", CALLS)


@pytest.fixture(autouse=True)
def _kernels():
    if "cpu" not in ops.backends("attention"):
        pytest.skip("the CPU extension is not built")


@each_op
def test_forward_mode_is_refused(op):
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=f"{op}: forward-mode.*restore"):
        CALLS[op](forward_ad.make_dual(X, torch.ones_like(X)))
    for transform in (torch.func.jacfwd(CALLS[op]), lambda x: torch.func.jvp(CALLS[op], (x,), (x,))):
        with pytest.raises(NotImplementedError, match=f"{op}: forward-mode"):
            transform(X)


@each_op
def test_gradients_by_torch_func_are_refused(op):
    with pytest.raises(NotImplementedError, match=f"{op}: torch.func transforms"):
        torch.func.grad(lambda x: CALLS[op](x).sum())(X)
    with pytest.raises(NotImplementedError, match=f"{op}: torch.func transforms"):
        torch.func.vmap(torch.func.grad(lambda x: CALLS[op](x).sum()))(torch.stack([X, X]))


@each_op
def test_tangents_of_gradients_are_refused(op):
    x = X.clone().requires_grad_()
    out = CALLS[op](x)
    with forward_ad.dual_level():
        grad = forward_ad.make_dual(torch.ones_like(out), torch.ones_like(out))
        with pytest.raises(NotImplementedError, match=f"{op}_backward: forward-mode"):
            torch.autograd.grad(out, x, grad)


@each_op
def test_what_has_no_tangent_runs_inside_a_transform(op):
    expected = CALLS[op](X)
    with forward_ad.dual_level():
        torch.testing.assert_close(CALLS[op](X), expected)
    torch.testing.assert_close(torch.func.vmap(CALLS[op])(torch.stack([X, X]))[1], expected)


def test_plain_pytorch_differentiates_forward():
    direction = torch.ones_like(X).double()
    weights = (IN.double() / 24, BIAS.double(), OUT.double() / 40, ONES.double())

    def run(x):
        return ops.feed_forward(x, *weights)

    with use_backend("reference"):
        _, tangent = torch.func.jvp(run, (X.double(),), (direction,))
        near = (run(X.double() + 1e-6 * direction) - run(X.double() - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close(tangent, near, rtol=1e-6, atol=1e-8)
