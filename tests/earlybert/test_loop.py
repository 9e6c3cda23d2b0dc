from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

import earlybert_kernels as ek
from earlybert import FinetuneArguments
from earlybert.arguments import SCHEDULES
from earlybert.programs.stages import Stages
from earlybert.tasks import TASKS
from earlybert.training import loop as loop_module
from earlybert.training.batches import collate
from earlybert.training.data import EncodedExamples
from earlybert.training.evaluation import predict
from earlybert.training.ragged import Ragged
from tests.helpers.training_loop import make_loop

CPU = torch.device("cpu")


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def gradients(model: nn.Module, examples: EncodedExamples, **changes: Any) -> dict[str, torch.Tensor]:
    """What the optimizer is given at the first step."""
    own = copy.deepcopy(model)
    loop = make_loop(own, examples, max_steps=1, **changes)
    seen = {}
    loop.optimizer.register_step_pre_hook(
        lambda *_: seen.update({name: p.grad.clone() for name, p in own.named_parameters()})
    )
    loop.run()
    return seen


def test_gradient_and_penalty_do_not_depend_on_accumulation(model: nn.Module, examples: EncodedExamples) -> None:
    at_once = gradients(model, examples, batch_size=16, gate_l1=0.5)
    for batch_size, accumulation in ((8, 2), (4, 4), (2, 8)):
        split = gradients(model, examples, batch_size=batch_size, accumulation_steps=accumulation, gate_l1=0.5)
        for name, gradient in at_once.items():
            torch.testing.assert_close(split[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_a_last_step_of_uneven_batches_weighs_examples_alike(model: nn.Module, examples: EncodedExamples) -> None:
    features = {name: Ragged.of([values[i] for i in range(10)]) for name, values in examples.features.items()}
    few = EncodedExamples(features, examples.pad_values, {"labels": examples.targets["labels"][:10]})
    at_once = gradients(model, few, batch_size=10)
    split = gradients(model, few, batch_size=4, accumulation_steps=3)
    for name, gradient in at_once.items():
        torch.testing.assert_close(split[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_the_penalty_is_lambda_times_the_sign(model: nn.Module, examples: EncodedExamples) -> None:
    for gate in (*ek.head_gates(model), *ek.neuron_gates(model)):
        gate.data.uniform_(-1, 1)
        gate.data[0] = 0
    without, with_penalty = (gradients(model, examples, gate_l1=gate_l1) for gate_l1 in (0.0, 0.25))
    for name, parameter in model.named_parameters():
        expected = 0.25 * parameter.detach().sign() if name.endswith("gates") else 0 * parameter.detach()
        torch.testing.assert_close(with_penalty[name] - without[name], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_our_optimizer_adds_the_penalty_for_a_converted_model(
    model: nn.Module, examples: EncodedExamples, dtype: torch.dtype
) -> None:
    stock = make_loop(copy.deepcopy(model), examples, gate_l1=0.5)
    converted = make_loop(ek.convert(copy.deepcopy(model)), examples, gate_l1=0.5, dtype=dtype)
    assert (type(stock.optimizer), type(converted.optimizer)) == (torch.optim.AdamW, ek.AdamW)
    for loop in (stock, converted):
        loop.run()
    for gate, ours in zip(stock.gates, converted.gates, strict=True):
        assert (gate < 0.99).all(), "the penalty is what moves them"
        torch.testing.assert_close(ours, gate, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("converts", "optimizer"), [(False, "adamw"), (True, "adamw"), (True, "lamb")])
def test_proximal_steps_shrink_gates_by_what_the_loss_cares_for_them(
    model: nn.Module, examples: EncodedExamples, converts: bool, optimizer: str
) -> None:
    for gate in (*ek.head_gates(model), *ek.neuron_gates(model)):
        gate.data.uniform_(-1, 1)
    model = ek.convert(model) if converts else model
    loops = [
        make_loop(copy.deepcopy(model), examples, optimizer=optimizer, max_steps=1, **changes)
        for changes in ({"gate_l1": 0.0}, {"gate_l1": 1e-2, "gate_penalty": "proximal"})
    ]
    zeros = 0
    for loop in loops:
        loop.run()
    for free, shrunk in zip(loops[0].gates, loops[1].gates, strict=True):
        # After one step the second moment without its bias is the gradient's square.
        gradient = loops[0].optimizer.state[free]["exp_avg_sq"].double().div(1 - 0.999).sqrt()
        threshold = 1e-2 * 1e-2 / (gradient + loops[0].optimizer.param_groups[-1]["eps"])
        expected = free.detach().double().sign() * (free.detach().double().abs() - threshold).clamp(min=0)
        torch.testing.assert_close(shrunk.detach().double(), expected, rtol=1e-4, atol=1e-5)
        zeros += (shrunk == 0).sum().item()
    assert 0 < zeros < sum(gate.numel() for gate in loops[1].gates)
    assert not any((gate == 0).any() for gate in loops[0].gates)


def test_proximal_steps_wait_for_gradients(model: nn.Module, examples: EncodedExamples) -> None:
    loop = make_loop(model, examples, max_steps=2, gate_penalty="proximal", gate_l1=1e9)
    loop.gates[0].requires_grad_(False)
    loop.run()
    assert (loop.gates[0] == 1).all()
    assert all((gate == 0).all() for gate in loop.gates[1:])


def test_the_penalty_is_logged_apart_from_the_loss(model: nn.Module, examples: EncodedExamples) -> None:
    histories = []
    for gate_l1 in (0.0, 1e-9):
        loop = make_loop(copy.deepcopy(model), examples, gate_l1=gate_l1, gate_learning_rate=0.0)
        loop.run()
        histories.append(loop.history[-1])
    units = 3 * (4 + 48)
    assert histories[0]["loss"] == histories[1]["loss"]
    assert histories[1]["gate_l1"] == pytest.approx(1e-9 * units)
    assert histories[0]["step"] == 3


def test_groups_of_parameters(model: nn.Module, examples: EncodedExamples) -> None:
    loop = make_loop(model, examples, weight_decay=0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [{names[id(p)] for p in group["params"]} for group in loop.optimizer.param_groups]
    assert set().union(*groups) == set(names.values())
    assert sum(map(len, groups)) == len(names)
    decayed, plain, gates = groups
    assert all(name.endswith("weight") and "LayerNorm" not in name for name in decayed)
    assert all(name.endswith("bias") or "LayerNorm" in name for name in plain)
    assert all(name.endswith(("head_gates", "neuron_gates")) for name in gates)
    assert [g["weight_decay"] for g in loop.optimizer.param_groups] == [0.1, 0.0, 0.0]
    assert [g["lr"] for g in loop.optimizer.param_groups] == [1e-3, 1e-3, 1e-2]


def test_gates_move_by_their_own_rate(model: nn.Module, examples: EncodedExamples) -> None:
    loop = make_loop(model, examples, max_steps=1, gate_learning_rate=1e-2)
    loop.run()
    moved = torch.cat([(gate.detach() - 1).abs() for gate in loop.gates])
    # Adam's first step is the learning rate in the direction of the gradient.
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-2), rtol=1e-3, atol=1e-6)


def test_weights_are_clipped_and_gates_are_not(
    model: nn.Module, examples: EncodedExamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = make_loop(model, examples, max_steps=1)
    seen = []
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda params, norm: seen.append((list(params), norm)))
    loop.run()
    ((clipped, norm),) = seen
    own = {id(gate) for gate in loop.gates}
    assert norm == 1.0
    assert not own & {id(p) for p in clipped}
    assert len(clipped) + len(own) == len(list(model.parameters()))


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_our_optimizers_cut_gradients_as_torch_does(
    model: nn.Module, examples: EncodedExamples, optimizer: str
) -> None:
    loops = [
        make_loop(ek.convert(copy.deepcopy(model)), examples, max_steps=2, optimizer=optimizer, max_grad_norm=norm)
        for norm in (0.01, 0.0)
    ]

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(loops[1]._weights, 0.01)

    loops[1].optimizer.register_step_pre_hook(clip)
    for loop in loops:
        loop.run()
    torch.testing.assert_close(parameters(loops[0].model), parameters(loops[1].model), rtol=1e-5, atol=1e-7)
    assert [group["max_grad_norm"] for group in loops[0].optimizer.param_groups] == [0.01, 0.01, 0.0]


def test_a_step_that_float16_skips_shrinks_no_gate(model: nn.Module, examples: EncodedExamples) -> None:
    loop = make_loop(model, examples, gate_penalty="proximal", gate_l1=1e9)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    loop.optimizer.grad_scale, loop.optimizer.found_inf = None, torch.ones(())  # as GradScaler says it
    loop.optimizer.step()
    assert all((gate == 1).all() for gate in loop.gates)
    loop.optimizer.found_inf = torch.zeros(())
    for parameter in model.parameters():
        parameter.grad.fill_(1e-3)
    loop.optimizer.step()
    assert all((gate == 0).all() for gate in loop.gates)


def test_the_schedule_falls_to_zero_after_warmup(model: nn.Module, examples: EncodedExamples) -> None:
    loop = make_loop(model, examples, max_steps=10, schedule="linear", warmup_steps=2)
    rates = []
    loop.run(lambda step: rates.append(loop.optimizer.param_groups[0]["lr"]) or False)
    assert rates == pytest.approx([5e-4, 1e-3, *(1e-3 * left / 8 for left in range(7, -1, -1))])


def test_stops_when_told(model: nn.Module, examples: EncodedExamples) -> None:
    loop = make_loop(model, examples, max_steps=10)
    loop.run(lambda step: step == 4)
    assert loop.step == 4


def test_a_loss_that_is_not_finite_stops_the_run(model: nn.Module, examples: EncodedExamples) -> None:
    model.classifier.bias.data.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="not finite in one of the last 2 steps, at step 2"):
        make_loop(model, examples, logging_steps=2).run()


def test_pauses_are_not_training_time(model: nn.Module, examples: EncodedExamples) -> None:
    loop = make_loop(model, examples, max_steps=1)

    def pause(step: int) -> bool:
        with loop.watch.paused():
            time.sleep(0.5)
        return False

    start = time.perf_counter()
    loop.run(pause)
    assert 0 < loop.watch.seconds < time.perf_counter() - start - 0.4


def test_bfloat16_trains_float32_parameters(model: nn.Module, examples: EncodedExamples) -> None:
    before = parameters(model)
    make_loop(model, examples, dtype=torch.bfloat16).run()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if "gates" in name)


def test_float16_gives_the_optimizer_the_gradient_of_float32(model: nn.Module, examples: EncodedExamples) -> None:
    """Clipping and penalty see gradients without the loss scale, whose first value is 65,536."""
    recipe = {"batch_size": 8, "accumulation_steps": 2, "gate_l1": 0.5, "max_grad_norm": 0.01}
    exact, half = (gradients(model, examples, dtype=dtype, **recipe) for dtype in (torch.float32, torch.float16))
    for name, gradient in exact.items():
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(
            half[name], gradient, rtol=0.05, atol=1e-4 if "gates" not in name else 5e-3, msg=name
        )
    weights = [gradient for name, gradient in half.items() if "gates" not in name]
    assert torch.cat([gradient.flatten() for gradient in weights]).norm().item() == pytest.approx(0.01, rel=1e-3)
    before = parameters(model)
    make_loop(model, examples, dtype=torch.float16, **recipe).run()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if "gates" in name)


def test_batches_are_padded_right(examples: EncodedExamples) -> None:
    indices = [3, 0, 5]
    batch = collate(examples, indices)
    longest = max(examples.lengths()[i] for i in indices)
    assert batch["input_ids"].shape == (3, longest)
    for row, index in enumerate(indices):
        length = examples.lengths()[index]
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (longest - length)
        assert batch["input_ids"][row, :length].tolist() == examples.features["input_ids"][index].tolist()
        assert not batch["input_ids"][row, length:].any()
    assert batch["labels"].tolist() == [examples.targets["labels"][i] for i in indices]
    assert collate(examples, indices, pad_to=16)["input_ids"].shape == (3, 16)


def test_packed_batches_train_as_padded_ones_do(model: nn.Module, examples: EncodedExamples) -> None:
    """Bit by bit: a converted model drops the padding of a padded batch before it computes anything."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    histories, states = [], []
    for packs in (True, False):
        own = ek.convert(copy.deepcopy(model))
        loop = make_loop(own, examples, max_steps=13, batch_size=16, accumulation_steps=2)  # more than an epoch
        assert loop._batches.packs
        loop._batches.packs = packs
        torch.manual_seed(5)
        loop.run()
        histories.append(loop.history)
        states.append(own.state_dict())
    assert histories[0] == histories[1]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_a_stock_model_gets_padded_batches(model: nn.Module, examples: EncodedExamples) -> None:
    assert set(make_loop(model, examples)._batches([0, 1])) == {
        "input_ids", "token_type_ids", "attention_mask", "labels"
    }  # fmt: skip


def test_captured_steps_train_as_others_do(
    model: nn.Module, examples: EncodedExamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU the same is done without graphs: batches are filled up to few shapes, an epoch's last one too."""
    loops = []
    for captures in (False, True):
        monkeypatch.setattr(loop_module, "has_graphs", lambda device, captures=captures: captures)
        loop = make_loop(ek.convert(copy.deepcopy(model)), examples, max_steps=15, schedule="linear", warmup_steps=3)
        assert loop.captures is captures
        steps = []
        monkeypatch.setattr(ek, "CapturedStep", recording(steps))
        loop.run()
        assert len(steps) == captures
        loops.append(loop)
    assert steps[0].buckets <= 4
    assert loops[1].history[-1] == pytest.approx(loops[0].history[-1], rel=1e-5)
    assert loops[1].first_loss == pytest.approx(loops[0].first_loss, rel=1e-6)
    for name, tensor in loops[0].model.state_dict().items():
        torch.testing.assert_close(loops[1].model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def recording(steps: list[ek.CapturedStep]) -> Callable[..., ek.CapturedStep]:
    def make(*args: Any) -> ek.CapturedStep:
        steps.append(captured_step(*args))
        return steps[-1]

    captured_step = ek.CapturedStep
    return make


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"accumulation_steps": 2}, "several batches"),
        ({"dtype": torch.float16}, "loss scaling"),
        ({"labels": torch.zeros(90)}, "regression"),
        ({"labels": torch.zeros(90, 2)}, "several labels"),
        ({"gate_penalty": "proximal"}, "reach 0"),
        ({"cuda_graphs": False}, None),
        ({"stock": True}, None),
    ],
)
def test_steps_that_cannot_be_captured_say_so(
    model: nn.Module,
    examples: EncodedExamples,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    reason: str | None,
) -> None:
    monkeypatch.setattr(loop_module, "has_graphs", lambda device: True)
    caplog.set_level(logging.INFO, "earlybert")
    if "labels" in changes:
        examples = replace(examples, targets={"labels": changes.pop("labels")})
    if not changes.pop("stock", False):
        ek.convert(model)
    assert not make_loop(model, examples, **changes).captures
    assert [reason in message for message in caplog.messages] == ([True] if reason else [])


def test_long_examples_are_cut(tiny_bert: str, toy_sst2: str) -> None:
    from pathlib import Path

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    dev = TASKS["sst2"].read(Path(toy_sst2) / "dev.tsv")
    encoded = TASKS["sst2"].encode(tokenizer, dev, 6)
    assert max(encoded.lengths()) == 6
    assert {ids[-1].item() for ids in encoded.features["input_ids"]} == {tokenizer.sep_token_id}


def test_predictions_are_in_the_order_of_the_examples(model: nn.Module, examples: EncodedExamples) -> None:
    model.train()
    options = {
        "outputs": TASKS["sst2"].outputs,
        "batch_size": 16,
        "pad_to": None,
        "dtype": torch.float32,
        "device": CPU,
    }
    together = predict(model, examples, **options)
    assert model.training
    with torch.no_grad():
        for index in (0, 7, 89):
            alone = model.eval()(**collate(examples, [index])).logits[0]
            torch.testing.assert_close(torch.from_numpy(together[index]), alone, rtol=1e-4, atol=1e-5)
    packed = predict(ek.convert(model), examples, **options)
    torch.testing.assert_close(packed, together, rtol=1e-4, atol=1e-5)


def test_gradients_are_left_as_they_are_without_a_norm(
    model: nn.Module, examples: EncodedExamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *args: pytest.fail("a gradient was cut"))
    make_loop(model, examples, max_steps=1, max_grad_norm=0.0).run()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_begins_with_its_warmup(model: nn.Module, examples: EncodedExamples, schedule: str) -> None:
    loop = make_loop(model, examples, max_steps=6, schedule=schedule, warmup_steps=2, logging_steps=1)
    loop.run()
    rates = [record["learning_rate"] for record in loop.history]
    assert rates[:3] == ([1e-3] * 3 if schedule == "constant" else pytest.approx([0.0, 5e-4, 1e-3]))
    assert (rates[-1] < 9e-4) == (not schedule.startswith("constant"))


def test_the_recipe_is_what_the_arguments_say(arguments: Callable[..., FinetuneArguments]) -> None:
    args = arguments(
        optim="lamb", lr_scheduler_type="cosine", warmup_ratio=0.5, warmup_steps=3, max_grad_norm=0.25, logging_steps=7
    ).resolved(16)
    stages, examples = Stages(args, torch.float32), range(90)
    training, search = stages.training("train", examples, 10, 16).settings, stages.search(examples).settings
    for settings in (training, search):
        assert (settings.optimizer, settings.max_grad_norm, settings.logging_steps) == ("lamb", 0.25, 7)
    assert (training.schedule, training.warmup_steps) == ("cosine", 3)
    assert (search.schedule, search.warmup_steps) == ("constant", 0)
    assert stages.training("train", examples, 2, 16).settings.warmup_steps == 1
