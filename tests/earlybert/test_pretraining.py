from __future__ import annotations

import json
import signal
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM

import earlybert_kernels as ek
from earlybert import FinetuneArguments, PretrainArguments, compare, draw, finetune, plot, pretrain, verify
from earlybert.errors import Interrupted, UsageError
from earlybert.programs.plots import curve_figure
from earlybert.search.drawing import read_gates
from earlybert.tasks.masked_lm import MaskedLMTask
from earlybert.training.batches import NO_LABEL, collate
from earlybert.training.data import TrainingOrder
from earlybert.training.evaluation import predict
from earlybert.training.loop import StageSettings, TrainingLoop
from tests.helpers.texts import encoded

Make = Callable[..., PretrainArguments]
CPU = torch.device("cpu")


# Training and evaluation


@pytest.fixture
def model(tiny_bert: str) -> nn.Module:
    config = BertConfig.from_pretrained(tiny_bert, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return BertForMaskedLM(config)


@pytest.fixture
def sequences(tiny_bert: str, toy_texts: str) -> Any:
    return encoded(tiny_bert, *Path(toy_texts).read_text().splitlines()[:40], max_length=24)


def losses(model: nn.Module, sequences: Any, batch_size: int, accumulation: int, **own: Any) -> list[float]:
    order = TrainingOrder(len(sequences), batch_size=batch_size, accumulation_steps=accumulation, seed=1)
    settings = {"max_steps": 6, "learning_rate": 1e-2, "schedule": "constant", "optimizer": "lamb"}
    settings |= {"logging_steps": 1, **own}
    loop = TrainingLoop(model, sequences, order, StageSettings(name="train", **settings), CPU)
    loop.run()
    return [record["loss"] for record in loop.history]


def test_accumulated_batches_count_by_their_labels(model: nn.Module, sequences: Any) -> None:
    whole = losses(deepcopy(model), sequences, 16, 1)
    assert losses(deepcopy(model), sequences, 4, 4) == pytest.approx(whole, rel=1e-4)
    assert losses(ek.convert(deepcopy(model)), sequences, 4, 4) == pytest.approx(whole, rel=1e-4)
    assert whole[-1] < whole[0]


def test_only_matrices_have_a_trust_ratio(model: nn.Module, sequences: Any) -> None:
    order = TrainingOrder(len(sequences), batch_size=8, accumulation_steps=1, seed=1)
    settings = StageSettings(
        name="search", max_steps=2, learning_rate=1e-3, gate_learning_rate=1e-3, schedule="constant", optimizer="lamb"
    )
    ek.enable_gates(ek.convert(model))
    gates = [*ek.head_gates(model), *ek.neuron_gates(model)]
    loop = TrainingLoop(model, sequences, order, settings, CPU, gates=gates)
    for group in loop.optimizer.param_groups:
        assert group["adapt"] == all(p.dim() > 1 for p in group["params"])
    loop.run()
    moved = [(gate - 1).abs().max().item() for gate in gates]
    assert 0.5e-3 < max(moved) <= 2.1e-3, "two steps of Adam's size, however long the vector is"


def test_the_model_is_judged_on_hidden_tokens(model: nn.Module, sequences: Any) -> None:
    task, held_out = MaskedLMTask(), sequences.as_held_out()
    options = {"outputs": task.outputs, "batch_size": 7, "pad_to": None, "dtype": torch.float32, "device": CPU}
    stock = task.evaluate(predict(model, held_out, **options), held_out).metrics
    total = correct = count = 0.0
    with torch.no_grad():
        for index in range(len(held_out)):
            batch = collate(held_out, [index])
            hidden = batch["labels"] != NO_LABEL
            logits = model.eval()(**batch).logits[hidden]
            total += nn.functional.cross_entropy(logits, batch["labels"][hidden], reduction="sum").item()
            correct += (logits.argmax(-1) == batch["labels"][hidden]).sum().item()
            count += hidden.sum().item()
    assert stock == pytest.approx({"eval_loss": total / count, "accuracy": correct / count}, rel=1e-5)
    packed = task.evaluate(predict(ek.convert(model), held_out, **options), held_out).metrics
    assert packed == pytest.approx(stock, rel=1e-4)


# Whole runs


@pytest.fixture
def pretraining(tiny_bert: str, toy_texts: str, tmp_path: Path) -> Make:
    """Makes the arguments of a short run: 8 optimizer steps of search, 9 of training and 3 on longer sequences."""

    def make(**changes: Any) -> PretrainArguments:
        defaults = {
            "config_name": tiny_bert,
            "train_file": toy_texts,
            "output_dir": str(tmp_path / "run"),
            "batch_size": 8,
            "max_length": 16,
            "long_length": 32,
            "long_share": 0.25,
            "max_steps": 12,
            "search_steps": 8,
            "early_bird_interval": 2,
            "learning_rate": 2e-2,
            "search_learning_rate": 2e-2,
            "head_ratio": 0.25,
            "eval_steps": 5,
            "device": "cpu",
        }
        return PretrainArguments(**{**defaults, **changes})

    return make


@pytest.mark.parametrize("kernels", ["auto", "off"])
@pytest.mark.parametrize("method", ["earlybert", "dense", "random", "inverted"])
def test_a_whole_run_on_texts(
    pretraining: Make, arguments: Callable, tmp_path: Path, method: str, kernels: str
) -> None:
    args = pretraining(method=method, kernels=kernels, max_steps=60, eval_steps=20)
    metrics = pretrain(args)
    out = Path(args.output_dir)
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert metrics["task"] == "mlm"
    assert metrics["steps"]["train"] == 60
    assert [entry["step"] for entry in metrics["curve"]] == [20, 40, 60]
    assert metrics["curve"][-1]["eval_loss"] == metrics["eval"]["eval_loss"] < metrics["train_log"][0]["loss"]
    assert metrics["eval"]["accuracy"] > 0.5, "a sequence is one word, again and again"
    assert (out / "curve.png").exists()
    model = AutoModelForMaskedLM.from_pretrained(out / "model")
    assert sum(p.numel() for p in model.parameters()) == metrics["parameters"]["trained"]
    if method == "dense":
        assert plot(str(out)) == [out / "curve.png"]
    else:
        assert all(finding.holds for finding in verify(str(out)))
        assert len(plot(str(out))) == 3
        assert draw(*read_gates(out), neuron_ratio=0.5).neurons != ek.Ticket.load(out / "ticket.json").neurons
    further: FinetuneArguments = arguments(
        model=str(out / "model"), method="dense", output_dir=str(tmp_path / "further"), kernels=kernels
    )
    assert finetune(further)["parameters"]["trained"] < metrics["parameters"]["trained"], "without the decoder"


def test_sequences_are_longer_in_the_last_part(pretraining: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[int]] = {}
    step = TrainingLoop._train_step

    def note(loop: TrainingLoop, batches: list[list[int]]) -> None:
        longest = max(len(loop._batches._examples[i]["input_ids"]) for batch in batches for i in batch)
        seen.setdefault(loop.settings.name, []).append(longest)
        step(loop, batches)

    monkeypatch.setattr(TrainingLoop, "_train_step", note)
    metrics = pretrain(pretraining())
    assert {name: len(each) for name, each in seen.items()} == {"search": 8, "train": 9, "train-long": 3}
    assert max(seen["train"]) == 16 < max(seen["train-long"]) <= 32
    assert [record["step"] for record in metrics["train_log"]] == [9, 12]


@pytest.mark.parametrize(("stage", "at"), [("search", 3), ("train", 4), ("train", 8), ("train-long", 2)])
def test_a_resumed_run_on_texts_is_the_uninterrupted_one_bit_by_bit(
    pretraining: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, at: int
) -> None:
    whole = pretrain(pretraining(output_dir=str(tmp_path / "whole")))
    args = pretraining(output_dir=str(tmp_path / "stopped"))
    step = TrainingLoop._train_step

    def stopping(loop: TrainingLoop, batches: list[list[int]]) -> None:
        step(loop, batches)
        if loop.settings.name == stage and loop.step + 1 == at:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_train_step", stopping)
        with pytest.raises(Interrupted):
            pretrain(args)
    resumed = pretrain(replace(args, resume=True))
    for name in ("ticket.json", "gates.safetensors", "model/model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()
    for name in ("eval", "train_log", "steps"):
        assert resumed[name] == whole[name]
    timeless = [[{**entry, "seconds": None} for entry in run["curve"]] for run in (resumed, whole)]
    assert timeless[0] == timeless[1]


def test_weights_of_a_checkpoint_are_gone_on_with(pretraining: Make, tmp_path: Path) -> None:
    first = pretrain(pretraining(method="dense", max_steps=60))
    again = pretraining(
        config_name=None, model=str(tmp_path / "run" / "model"), output_dir=str(tmp_path / "again"), method="dense",
        max_steps=1, long_share=0.0, learning_rate=1e-9,
    )  # fmt: skip
    assert pretrain(again)["eval"]["eval_loss"] == pytest.approx(first["eval"]["eval_loss"], rel=1e-4)


def test_an_encoder_without_a_head_gets_one_of_the_seed(pretraining: Make, tiny_bert: str, tmp_path: Path) -> None:
    found = []
    for number, kernels in enumerate(("auto", "off")):
        args = pretraining(
            config_name=None, model=tiny_bert, output_dir=str(tmp_path / str(number)), kernels=kernels, method="dense",
            max_steps=1, long_share=0.0, learning_rate=1e-9, warmup_ratio=0.0,
        )  # fmt: skip
        found.append(pretrain(args)["eval"]["eval_loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_whole_words_and_adamw_are_choices(pretraining: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    run = TrainingLoop.run

    def note(loop: TrainingLoop, *arguments: Any) -> None:
        seen.append((type(loop.optimizer), loop.settings.dtype, loop._batches._examples.words is None))
        run(loop, *arguments)

    monkeypatch.setattr(TrainingLoop, "run", note)
    pretrain(pretraining(whole_words=True, optim="adamw", dtype="bfloat16", method="dense"))
    pretrain(pretraining(method="dense", overwrite_output_dir=True))
    chosen, default = (ek.AdamW, torch.bfloat16, False), (ek.Lamb, torch.float32, True)
    assert seen == [chosen, chosen, default, default]


def test_methods_are_compared_on_texts(pretraining: Make, tmp_path: Path) -> None:
    args = pretraining(max_steps=4, search_steps=4, output_dir=str(tmp_path / "all"))
    comparison = compare(args, [("dense", "off"), ("earlybert", "auto"), ("random", "auto")], [1])
    assert comparison["metric"] == "accuracy"
    assert comparison["model"] == args.config_name
    assert comparison["noise"] == "With one seed, small differences of accuracy are noise."
    assert compare(args, [("dense", "off")], [1])["rows"][0] == comparison["rows"][0], "not repeated"


def test_padded_batches_are_as_long_as_their_stage_has_it(pretraining: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: dict[str, set[int]] = {}
    update = TrainingLoop._update

    def note(loop: TrainingLoop, batches: list[Any], shares: list[float]) -> torch.Tensor:
        widths.setdefault(loop.settings.name, set()).update(batch["input_ids"].shape[1] for batch in batches)
        return update(loop, batches, shares)

    monkeypatch.setattr(TrainingLoop, "_update", note)
    pretrain(pretraining(kernels="off", padding="max_length"))
    assert widths == {"search": {16}, "train": {16}, "train-long": {32}}


def test_examples_are_never_cut_by_padding(tiny_bert: str) -> None:
    with pytest.raises(ValueError, match="an example has 6 tokens, more than pad_to, 4"):
        collate(encoded(tiny_bert, "a film is good"), [0], pad_to=4)


def test_a_resumed_run_remembers_that_it_diverged(pretraining: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    args = pretraining(method="dense", learning_rate=3.0, optim="adamw")
    step = TrainingLoop._train_step

    def stopping(loop: TrainingLoop, batches: list[list[int]]) -> None:
        step(loop, batches)
        if loop.settings.name == "train-long":
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_train_step", stopping)
        with pytest.raises(Interrupted):
            pretrain(args)
    warnings = pretrain(replace(args, resume=True))["warnings"]
    assert any(warning.startswith("train: the loss ended") for warning in warnings)


def test_the_last_step_is_no_warm_up(pretraining: Make) -> None:
    metrics = pretrain(pretraining(method="dense", max_steps=1, long_share=0.0, warmup_ratio=0.9))
    start = pretrain(
        pretraining(method="dense", max_steps=1, long_share=0.0, learning_rate=1e-12, overwrite_output_dir=True)
    )
    assert metrics["eval"]["eval_loss"] != start["eval"]["eval_loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "x"}, "expected --model, .*or --config-name, .*not both"),
        ({"config_name": None}, "expected --model, .*or --config-name"),
        ({"train_file": None}, "expected --train-file or --dataset-name"),
        ({"dataset_name": "x"}, "not both"),
        ({"dataset_name": "x", "train_file": None, "validation_file": "y"}, "has its own"),
        ({"streaming": True}, "--streaming: expected --dataset-name and --max-train-examples"),
        ({"mlm_probability": 1.0}, "--mlm-probability: expected a share between 0 and 1"),
        ({"mlm_probability": float("nan")}, "--mlm-probability"),
        ({"long_share": 1.5}, "--long-share"),
        ({"long_length": 64}, "--long-length: expected at most 32, the model's longest input, found 64"),
        ({"max_length": 64, "long_share": 0.0}, "--max-length: expected at most 32"),
        ({"max_length": 20, "long_length": 16}, "--long-length: expected at least --max-length, found 16"),
        ({"documents": "blank-line", "dataset_name": "x", "train_file": None}, "--documents: a row"),
        ({"optim": "sgd"}, "--optim: expected one of adamw, lamb"),
        ({"documents": "page"}, "--documents: expected one of line, blank-line"),
        ({"eval_steps": 0}, "--eval-steps: expected at least 1"),
        ({"config_name": "nowhere"}, "--config-name nowhere: no model could be read there"),
        ({"tokenizer": "nowhere"}, "--tokenizer nowhere: no tokenizer could be read there"),
        ({"max_length": None}, "--max-length: expected a number"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    pretraining: Make, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        pretrain(pretraining(**changes))
    assert not (tmp_path / "run").exists()


def test_a_corpus_of_less_than_a_batch_is_refused(pretraining: Make, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("good\nbad\ngood\n")
    with pytest.raises(UsageError, match=r"2 sequences.*--batch-size 8"):
        pretrain(pretraining(train_file=str(path)))
    assert not (tmp_path / "run").exists()


def test_the_masks_are_bound_to_a_run(pretraining: Make) -> None:
    pretrain(pretraining())
    with pytest.raises(UsageError, match="--mlm-probability"):
        pretrain(pretraining(resume=True, mlm_probability=0.3))


def test_a_task_to_pretrain_on_is_none_to_finetune_on(arguments: Callable) -> None:
    with pytest.raises(UsageError, match="earlybert pretrain"):
        finetune(arguments(task="mlm"))


def test_the_curve_is_drawn_against_steps_and_seconds() -> None:
    curve = [{"step": 5, "seconds": 2.0, "eval_loss": 3.0}, {"step": 10, "seconds": 4.0, "eval_loss": 2.0}]
    expected = [[[5, 3], [10, 2]], [[2, 3], [4, 2]]]
    assert _lines(curve) == expected, "accuracy is not there"
    for entry, accuracy in zip(curve, (0.25, 0.5), strict=True):
        entry["accuracy"] = accuracy
    assert _lines(curve) == [*expected, [[5, 0.25], [10, 0.5]], [[2, 0.25], [4, 0.5]]]


def _lines(curve: list[dict[str, Any]]) -> list[Any]:
    return [axes.lines[0].get_xydata().tolist() for axes in curve_figure({"": curve}, "accuracy").axes]


def test_the_command_line_pretrains(pretraining: Make, capsys: pytest.CaptureFixture) -> None:
    from earlybert.cli import main

    args = pretraining(method="dense", max_steps=2, long_share=0.0)
    names = ("config_name", "train_file", "output_dir", "batch_size", "max_length", "max_steps", "long_share", "method")
    flags = [part for name in names for part in ("--" + name.replace("_", "-"), str(getattr(args, name)))]
    assert main(["pretrain", *flags]) == 0
    assert "mlm: accuracy " in capsys.readouterr().out
