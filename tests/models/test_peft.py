"""Adapters of PEFT: they are trained, or refused; never passed by without a word."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import earlybert_kernels as ek
from tests.helpers.tiny_bert import batch, some_ticket, tiny_model

peft = pytest.importorskip("peft", reason="needs peft")

INPUTS = {**batch(), "labels": torch.tensor([0, 1, 2, 0])}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def adapted(model: nn.Module, *targets: str, **options: object) -> nn.Module:
    """With LoRA whose weights are none of them 0."""
    config = peft.LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False, **options)
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize("is_compact", [True, False], ids=["compact", "dense"])
def test_adapters_are_trained_on_stock_modules_and_merged_before_converting(is_compact: bool) -> None:
    model = tiny_model()
    if is_compact:
        ek.compact(model, some_ticket(model))
    model = adapted(model, "query", "value")
    first = model(**INPUTS)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    first.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) == 3 * 2 * 2
    assert all("lora" in name and gradient.abs().max() > 0 for name, gradient in gradients.items())
    optimizer.step()
    expected = model(**INPUTS).logits
    assert not torch.allclose(expected, first.logits, **CLOSE)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(**INPUTS).logits, expected, **CLOSE)
    torch.testing.assert_close(ek.convert(merged)(**INPUTS).logits, expected, **CLOSE)


@pytest.mark.parametrize("target", ["query", "value", "attention.output.dense", "intermediate.dense"])
def test_an_adapter_inside_a_fused_layer_is_refused(target: str) -> None:
    model = adapted(ek.convert(tiny_model()), target)
    with pytest.raises(TypeError, match=r"was replaced.*restore\(model\).*merge_and_unload"):
        model(**INPUTS)
    ek.restore(model)  # the way out that the message names
    expected = adapted_stock(model)
    torch.testing.assert_close(model(**INPUTS).logits, expected, **CLOSE)


def adapted_stock(model: nn.Module) -> torch.Tensor:
    """The logits of stock transformers with a model's adapters merged by hand."""
    stock = tiny_model()
    weights = dict(stock.named_parameters())
    state = model.base_model.model.state_dict()
    for name, value in state.items():
        if name.endswith("lora_A.default.weight"):
            stem = name.removesuffix(".lora_A.default.weight")
            scale = model.peft_config["default"].lora_alpha / 2
            weights[f"{stem}.weight"].data += scale * state[f"{stem}.lora_B.default.weight"] @ value
    return stock(**INPUTS).logits


@pytest.mark.parametrize("verb", [ek.convert, ek.enable_gates])
def test_a_model_with_adapters_is_not_converted(verb: Callable) -> None:
    with pytest.raises(TypeError, match="merge the adapter first"):
        verb(adapted(tiny_model(), "query", "value"))


@pytest.mark.parametrize("target", ["classifier", "pooler.dense", "word_embeddings"])
def test_an_adapter_outside_the_fused_layers_is_run(target: str) -> None:
    model = adapted(ek.convert(tiny_model()), target)
    outputs = model(**INPUTS)
    torch.testing.assert_close(ek.restore(model)(**INPUTS).logits, outputs.logits, **CLOSE)
    outputs.loss.backward()
    assert any("lora" in name and p.grad is not None and p.grad.any() for name, p in model.named_parameters())


def test_parameters_that_are_adapted_are_refused() -> None:
    model = adapted(ek.convert(tiny_model()), target_parameters=["query.weight"])
    with pytest.raises(TypeError, match=r"restore\(model\)"):
        model(**INPUTS)


def test_prefixes_are_refused() -> None:
    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    model = peft.get_peft_model(ek.convert(tiny_model()), config)
    with pytest.raises(ValueError, match="takes no encoder_hidden_states and no past_key_values"):
        model(**INPUTS)
