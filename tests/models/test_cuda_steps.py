"""Optimizer steps of a converted model whose ops all run on the backend `cuda`, on the CPU where there is no GPU."""

import copy

import pytest
import torch

import earlybert_kernels as ek
from tests.helpers.tiny_bert import batch, set_gates, some_ticket, tiny_model

STEPS = 3
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Heads of 32 values, which CUDA's attention takes.
SIZES = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 72, "num_hidden_layers": 2}

for _op in ("embedding_layer_norm", "attention_sublayer", "feed_forward_sublayer"):
    if "cuda" not in ek.ops.backends(_op):
        pytest.skip(f"{_op} cannot run on cuda here", allow_module_level=True)


def trained(model, low=None):
    """The losses of some steps, under autocast to `low` where it is given, and the parameters after them."""
    model = model.to(DEVICE).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    inputs = {name: value.to(DEVICE) for name, value in batch((5, 1, 11, 3)).items()}
    losses = []
    for _ in range(STEPS):
        with torch.autocast(DEVICE, low, enabled=low is not None):
            loss = model(**inputs, labels=inputs["input_ids"][:, 0] % 3).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [torch.stack(losses), *(p.detach() for p in model.parameters())]


def assert_as_close(ours, plain, truth):
    """All results together are off from `truth` by no more than twice what plain PyTorch is."""
    error, allowed = (
        torch.cat([(a.double() - b.double()).flatten() for a, b in zip(side, truth, strict=True)]).norm()
        for side in (ours, plain)
    )
    assert error <= 2 * allowed, f"error {error:.3g}, allowed {2 * allowed:.3g}"


@pytest.mark.parametrize("gated", [False, True])
def test_converted_trains_as_stock_under_autocast(gated):
    model = tiny_model(**SIZES)
    if gated:
        set_gates(ek.enable_gates(model))
    truth = trained(copy.deepcopy(model).double())
    plain = trained(copy.deepcopy(model), torch.bfloat16)
    assert truth[0][-1] < truth[0][0]  # it learns, so that the comparison means something
    with ek.use_backend("cuda"):
        assert_as_close(trained(ek.convert(model), torch.bfloat16), plain, truth)


def test_masked_trains_as_compact():
    model = ek.convert(tiny_model(**SIZES))
    ticket = some_ticket(model)
    truth = trained(ek.compact(copy.deepcopy(model).double(), ticket))
    plain = trained(ek.compact(copy.deepcopy(model), ticket), torch.bfloat16)
    with ek.use_backend("cuda"):
        masked = trained(ek.apply_ticket(copy.deepcopy(model), ticket), torch.bfloat16)
        compact = trained(ek.compact(model, ticket), torch.bfloat16)
    assert_as_close(compact, plain, truth)
    torch.testing.assert_close(masked[0], compact[0], rtol=1e-2, atol=1e-2)
