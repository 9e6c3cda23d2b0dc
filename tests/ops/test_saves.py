"""Where no backward can come, forward keeps nothing for one."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from earlybert_kernels.backends import cpu
from tests.helpers.examples import EXAMPLES, inputs

OPS = [
    "attention",
    "attention_sublayer",
    "dropout_add_layer_norm",
    "embedding_layer_norm",
    "feed_forward",
    "feed_forward_sublayer",
]

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))


class Results(TorchDispatchMode):
    """Notes what the library's ops return."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        if func.namespace == "earlybert":
            self.found.append(results)
        return results


def called(op, tensors):
    """The op's own result, and how many numbers it returned beside it."""
    with Results() as noted:
        EXAMPLES[op][0](*tensors, dropout_p=0.0, backend="cpu")
    ((out, *others),) = noted.found
    return out, sum(t.numel() for t in others)


@pytest.mark.parametrize("op", OPS)
def test_the_result_is_the_same_and_the_only_one(op):
    tensors = inputs(op, torch.Generator().manual_seed(0))
    out, saved = called(op, tensors)
    assert saved > 0
    with torch.no_grad():
        assert_alone(out, *called(op, tensors))
    detached = [t.detach() for t in tensors]
    assert_alone(out, *called(op, detached))
    detached[-1].requires_grad_()
    assert called(op, detached)[1] == saved


def assert_alone(expected, out, saved):
    assert torch.equal(out, expected) and saved == 0


def test_the_kernels_write_nothing_else():
    """What they return is not only dropped by what calls them."""
    x, w_in, w_out, bias = torch.randn(5, 16), torch.randn(24, 16), torch.randn(16, 24), torch.zeros(24)
    feed_forward = (x, w_in, bias, w_out, bias[:16], None, None, "gelu")
    norm = (x, x, bias[:16], bias[:16], None, 0.0, 1e-12)
    ids = torch.zeros(5, dtype=torch.int64)
    embeddings = (ids, ids, ids, x, x, x, bias[:16], bias[:16], None, -1, 0.0, 1e-12)
    offsets = torch.tensor([0, 5], dtype=torch.int32)
    attention = (*[x.view(5, 2, 8)] * 3, offsets, 5, offsets, 5, None, None, None, 0.0, 1.0, None)
    calls = {
        cpu.feed_forward: feed_forward,
        cpu.dropout_add_layer_norm: norm,
        cpu.embedding_layer_norm: embeddings,
        cpu.attention: attention,
    }
    for module, arguments in calls.items():
        kept = module.forward(*arguments)
        out, *others = module.forward(*arguments, False)
        assert torch.equal(out, kept[0]) and set(others) == {None}
