"""transformers.Trainer: converted models as stock ones, and the method inside its run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

import earlybert_kernels as ek
from earlybert import EarlyBertCallback, Search, SearchSettings
from tests.helpers.tiny_bert import tiny_model

pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")

#: A search of 12 of 22 steps at most, that ends when the ticket of 8 steps is like the one before.
SEARCH = {"search_share": 0.55, "search_learning_rate": 1e-3, "gate_learning_rate": 0.1, "gate_l1": 1e-3}
SETTINGS = {"interval": 2, "patience": 1, "threshold": 0.99, "min_share": 0.6}
TRAIN_STEPS = 10


def examples(count: int = 48) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 20, (count,), generator=generator).tolist()
    return [
        {"input_ids": torch.randint(1, 50, (n,), generator=generator).tolist(), "labels": i % 3}
        for i, n in enumerate(lengths)
    ]


def pad(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    longest = max(len(f["input_ids"]) for f in features)
    rows = [f["input_ids"] + [0] * (longest - len(f["input_ids"])) for f in features]
    ids = torch.tensor(rows)
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "labels": torch.tensor([f["labels"] for f in features]),
    }


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(model: nn.Module, *callbacks: TrainerCallback, collator: Any = pad, **changes: Any) -> Trainer:
        settings = {
            "output_dir": str(tmp_path / "run"), "per_device_train_batch_size": 4, "max_steps": 22,
            "learning_rate": 2e-3, "logging_steps": 1, "use_cpu": True, "report_to": "none", "disable_tqdm": True,
            "save_strategy": "no",
        }  # fmt: skip
        args = TrainingArguments(**{**settings, **changes})
        data = examples()
        return Trainer(
            model=model, args=args, data_collator=collator, train_dataset=data, eval_dataset=data[:10],
            callbacks=list(callbacks),
        )  # fmt: skip

    return make


def callback(**changes: Any) -> EarlyBertCallback:
    return EarlyBertCallback(**{**SEARCH, **SETTINGS, **changes})


def logged(trainer: Trainer, name: str) -> list[float]:
    return [record[name] for record in trainer.state.log_history if name in record]


@pytest.mark.parametrize(
    ("collator", "changes"),
    [
        (pad, {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "train_sampling_strategy": "group_by_length"}),
        (ek.PackedCollator(), {}),
        (pad, {"bf16": True}),
    ],
    ids=["accumulated by length", "packed", "bfloat16"],
)
def test_a_converted_model_trains_as_a_stock_one(
    trainer: Callable[..., Trainer], collator: Any, changes: dict[str, Any], tmp_path: Path
) -> None:
    results = []
    for converted in (False, True):
        model = tiny_model()
        out = str(tmp_path / str(converted))
        used = trainer(
            ek.convert(model) if converted else model, collator=collator if converted else pad,
            **{"max_steps": 8, "output_dir": out, "save_strategy": "steps", "save_steps": 4, **changes},
        )  # fmt: skip
        used.train()
        whole = logged(used, "loss")
        predictions = torch.as_tensor(used.predict(examples()[:8]).predictions)
        again = trainer(
            ek.convert(tiny_model()) if converted else tiny_model(), collator=collator if converted else pad,
            **{"max_steps": 8, "output_dir": out, **changes},
        )  # fmt: skip
        again.train(resume_from_checkpoint=f"{out}/checkpoint-4")
        assert logged(again, "loss") == whole
        results.append((torch.tensor(whole), torch.tensor(used.evaluate()["eval_loss"]), predictions))
    tolerance = {"rtol": 0.05, "atol": 0.05} if "bf16" in changes else {"rtol": 1e-4, "atol": 1e-4}
    losses, _, predictions = zip(*results, strict=True)
    torch.testing.assert_close(*losses, **tolerance)
    torch.testing.assert_close(*predictions, **tolerance)
    if collator is pad:  # Trainer weighs a packed batch as one example
        torch.testing.assert_close(*(loss for _, loss, _ in results), **tolerance)


class Batches(DataCollatorWithPadding):
    """Remembers what the model has been trained on."""

    def __init__(self) -> None:
        self.made: list[dict[str, torch.Tensor]] = []

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        self.made.append(pad(features))
        return self.made[-1]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_run_is_that_of_a_plain_loop(trainer: Callable[..., Trainer], accumulation: int) -> None:
    batches, method = Batches(), callback()
    run = trainer(
        ek.convert(tiny_model()), method, collator=batches, gradient_accumulation_steps=accumulation, weight_decay=0.1,
        optim="adamw_torch",
    )  # fmt: skip
    run.train()
    steps = iter(zip(*[iter(batches.made)] * accumulation, strict=False))

    def train(step: int, rate: float) -> None:
        parts = next(steps)
        loss = sum(model(**part).loss for part in parts)
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p not in gates], 1.0)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())

    def groups() -> list[dict[str, Any]]:
        weights = [(n, p) for n, p in model.named_parameters() if p not in gates]
        decays = {n for n, _ in weights if "bias" not in n and "LayerNorm" not in n}
        return [
            {"params": [p for n, p in weights if n in decays], "weight_decay": 0.1},
            {"params": [p for n, p in weights if n not in decays], "weight_decay": 0.0},
        ]

    model, expected = ek.convert(tiny_model()).train(), []
    search = Search(model, SearchSettings(max_steps=12, **SETTINGS))
    gates = set(search.gates)
    gate_group = {"params": search.gates, "weight_decay": 0.0, "lr": 0.1, "l1": 1e-3}
    optimizer = ek.AdamW([*groups(), gate_group], lr=1e-3)
    while not search.is_over:
        train(search.step, 1e-3)
        search.after_step()
    assert search.step < 12  # the early bird, whose steps nobody gets
    assert method.record == {**search.record(), "step": search.step}
    assert search.finish() == method.ticket
    gates = set()
    optimizer = ek.AdamW(groups())
    for step in range(TRAIN_STEPS):
        train(step, 2e-3 * (1 - step / TRAIN_STEPS))
    # Trainer adds the losses of accumulated batches of a classifier up: transformers leaves the division to the model.
    torch.testing.assert_close(torch.tensor(logged(run, "loss")), torch.tensor(expected), rtol=2e-3, atol=2e-3)
    assert run.state.global_step == search.step + TRAIN_STEPS
    assert logged(run, "learning_rate")[-1] == pytest.approx(2e-3 / TRAIN_STEPS)
    assert len(logged(run, "gate_l1")) == search.step
    assert logged(run, "head_distance") and logged(run, "neuron_distance")
    held = {p for group in run.optimizer.param_groups for p in group["params"]}
    assert held == set(run.model.parameters()) and set(run.optimizer.state) == held


@pytest.mark.parametrize(
    ("converted", "changes"),
    [(True, {"bf16": True, "lr_scheduler_type": "cosine", "warmup_steps": 2}), (False, {})],
    ids=["converted", "stock"],
)
def test_a_run_goes_on_from_before_and_after_the_draw(
    trainer: Callable[..., Trainer], converted: bool, changes: dict[str, Any]
) -> None:
    def make(dropout: float = 0.1, seed: float = 0) -> tuple[Trainer, EarlyBertCallback]:
        model = tiny_model(dropout=dropout)
        model.classifier.weight.data.add_(seed)
        method = callback()
        saves = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
        best = {"load_best_model_at_end": True}
        return trainer(ek.convert(model) if converted else model, method, **saves, **best, **changes), method

    whole, method = make()
    whole.train()
    drawn = method.record["step"]
    assert 2 < drawn < 12
    best = whole.state.best_model_checkpoint
    assert int(best.rpartition("-")[2]) > drawn
    values = {r["step"]: r["eval_loss"] for r in whole.state.log_history if "eval_loss" in r}
    assert whole.evaluate()["eval_loss"] == pytest.approx(min(v for s, v in values.items() if s > drawn), rel=1e-3)
    for step in (2, drawn, drawn + 2):
        again, other = make(seed=1)  # a run's head begins where it happens to
        again.train(resume_from_checkpoint=str(Path(again.args.output_dir, f"checkpoint-{step}")))
        assert other.ticket == method.ticket and other.record == method.record
        assert logged(again, "loss") == logged(whole, "loss")
        assert logged(again, "learning_rate") == logged(whole, "learning_rate")
        state = whole.model.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in again.model.state_dict().items())


def test_what_cannot_be_is_refused(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="search_share"):
        callback(search_share=1.0)
    with pytest.raises(TypeError, match="ratio"):
        callback(ratio=1.0)
    with pytest.raises(ValueError, match="too few"):
        trainer(tiny_model(), callback(), max_steps=1).train()
    with pytest.raises(ValueError, match="GreedyLR|ReduceLROnPlateau"):
        trainer(
            tiny_model(), callback(), lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="steps", eval_steps=5,
            metric_for_best_model="loss",
        ).train()  # fmt: skip
    trainer(tiny_model(), max_steps=2, save_strategy="steps", save_steps=2).train()
    with pytest.raises(ValueError, match=r"no earlybert\.pt of step 2"):
        trainer(tiny_model(), callback()).train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
