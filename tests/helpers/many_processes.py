"""What a run of several processes does, to be compared with one process: in processes of its own, or called as it is.

Each process writes what it has found to FOLDER/SCENARIO-RANK.pt. All runs see the same global batches of four examples.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainerCallback, TrainingArguments

import earlybert_kernels as ek
from earlybert import EarlyBertCallback, Search, SearchSettings, processes
from tests.helpers import forked
from tests.helpers.forked import Ended
from tests.helpers.tiny_bert import batch, some_ticket, tiny_model

BATCH = 4
#: A search of 12 of 22 steps at most, that ends when the ticket of 8 steps is like the one before.
SEARCH = {"search_share": 0.55, "search_learning_rate": 1e-3, "gate_learning_rate": 0.1, "gate_l1": 1e-3}
SETTINGS = {"interval": 2, "patience": 1, "threshold": 0.99, "min_share": 0.6}

Found = dict[str, Any]


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if dist.is_initialized() else 0


def wrapped(model: nn.Module) -> nn.Module:
    """In DistributedDataParallel, where there are several processes."""
    return DistributedDataParallel(model) if processes.count() > 1 else model


def share(step: int) -> dict[str, torch.Tensor]:
    """This process's rows of a step's global batch."""
    whole = batch((5, 1, 9, 3), seed=step) | {"labels": torch.arange(step, step + BATCH) % 3}
    size = BATCH // processes.count()
    return {name: tensor[rank() * size : (rank() + 1) * size] for name, tensor in whole.items()}


def mean(loss: torch.Tensor) -> float:
    """Of all processes."""
    loss = loss.detach().clone()
    processes.average([loss])
    return loss.item()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of a model's tensors."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> float:
    """One step; returns the mean loss of all processes."""
    loss = model(**share(step)).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return mean(loss)


def plain_loop(folder: Path, *, converted: bool = True) -> Found:
    """The method in a loop of one's own."""
    model = tiny_model().train()
    if converted:
        ek.convert(model)
    search = Search(model, SearchSettings(max_steps=12, **SETTINGS))
    gates = {"params": search.gates, "l1": 1e-3, "lr": 0.1, "weight_decay": 0.0}
    optimizer = ek.AdamW([{"params": search.weights}, gates], lr=1e-3)
    wrapper, losses = wrapped(model), []
    while not search.is_over:
        losses.append(train(wrapper, optimizer, search.step))
        search.after_step()
    ticket = search.finish()
    wrapper, optimizer = wrapped(model), ek.AdamW(model.parameters(), lr=2e-3)
    losses += [train(wrapper, optimizer, 100 + step) for step in range(8)]
    return {"ticket": ticket.heads + ticket.neurons, "steps": search.step, "losses": losses, "state": state(model)}


def stock_loop(folder: Path) -> Found:
    """The same of a stock model, and so of stock transformers' arithmetic."""
    return plain_loop(folder, converted=False)


def accelerated(folder: Path) -> Found:
    """The same by Accelerate: the model and its optimizer are prepared, and prepared anew after the draw."""
    from accelerate import Accelerator

    accelerator, model = Accelerator(cpu=True), ek.convert(tiny_model()).train()
    search = Search(model, SearchSettings(max_steps=12, **SETTINGS))
    gates = {"params": search.gates, "l1": 1e-3, "lr": 0.1, "weight_decay": 0.0}
    optimizer = ek.AdamW([{"params": search.weights}, gates], lr=1e-3)
    losses = []

    def step(wrapper: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        loss = wrapper(**share(number)).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(accelerator.reduce(loss.detach(), "mean").item())

    wrapper, prepared = accelerator.prepare(model, optimizer)
    while not search.is_over:
        step(wrapper, prepared, search.step)
        search.after_step()
    ticket = search.finish()
    del wrapper
    accelerator.free_memory()
    wrapper, prepared = accelerator.prepare(model, ek.AdamW(model.parameters(), lr=2e-3))
    for number in range(8):
        step(wrapper, prepared, 100 + number)
    return {"ticket": ticket.heads + ticket.neurons, "steps": search.step, "losses": losses, "state": state(model)}


def masked(folder: Path) -> Found:
    """Units that are skipped, and Parameters that are frozen."""
    model = ek.convert(tiny_model()).train()
    ek.apply_ticket(model, some_ticket(model))
    model.bert.embeddings.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wrapper, optimizer = wrapped(model), ek.AdamW(trained, lr=1e-3)
    return {"losses": [train(wrapper, optimizer, step) for step in range(6)], "state": state(model)}


def disagreement(folder: Path) -> Found:
    """What is said where processes have trained apart."""
    model = ek.convert(tiny_model())
    search = Search(model, SearchSettings(max_steps=12))
    with torch.no_grad():
        search.gates[0][rank()] = 0.0
    try:
        search.finish()
    except RuntimeError as error:
        return {"error": str(error)}
    return {"error": None}


def examples() -> list[dict[str, Any]]:
    """Of other lengths each; some epochs' worth."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 20, (48,), generator=generator).tolist()
    ids = [torch.randint(1, 50, (n,), generator=generator).tolist() for n in lengths]
    return [{"input_ids": row, "labels": number % 3} for number, row in enumerate(ids)]


def pad(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch that is padded on the right."""
    longest = max(len(feature["input_ids"]) for feature in features)
    ids = torch.tensor([f["input_ids"] + [0] * (longest - len(f["input_ids"])) for f in features])
    labels = torch.tensor([feature["labels"] for feature in features])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


def make_trainer(
    folder: Path, *callbacks: TrainerCallback, collator: Callable = pad, converted: bool = True, **changes: Any
) -> tuple[Trainer, EarlyBertCallback]:
    """A run with the method, of the same global batches however many processes there are."""
    method = EarlyBertCallback(**SEARCH, **SETTINGS)
    accumulation = changes.get("gradient_accumulation_steps", 1)
    settings = {
        "output_dir": str(folder), "per_device_train_batch_size": BATCH // processes.count() // accumulation,
        "max_steps": 22, "learning_rate": 2e-3, "logging_steps": 1, "use_cpu": True, "report_to": "none",
        "disable_tqdm": True, "save_strategy": "steps", "save_steps": 2,
        # Shuffled, examples come in another order where a process has batches of another size.
        "train_sampling_strategy": "sequential",
        # Else Trainer multiplies a classifier's mean loss by the number of processes.
        "average_tokens_across_devices": False,
    }  # fmt: skip
    model = ek.convert(tiny_model()) if converted else tiny_model()
    trainer = Trainer(
        model=model, args=TrainingArguments(**{**settings, **changes}), data_collator=collator,
        train_dataset=examples(), eval_dataset=examples()[:16], callbacks=[*callbacks, method],
    )  # fmt: skip
    return trainer, method


def summary(trainer: Trainer, method: EarlyBertCallback) -> Found:
    """What a run has come to."""
    history = trainer.state.log_history
    assert method.ticket is not None and method.record is not None
    return {
        "ticket": method.ticket.heads + method.ticket.neurons,
        "steps": method.record["step"],
        "losses": [record["loss"] for record in history if "loss" in record],
        "rates": [record["learning_rate"] for record in history if "loss" in record],
        "norms": [record["grad_norm"] for record in history if "loss" in record],
        "eval": [record["eval_loss"] for record in history if "eval_loss" in record],
        "best": trainer.state.best_global_step,
        "state": state(trainer.model),
    }


def resumed(folder: Path, step: int) -> Found:
    """The run of `trained` that goes on from one of its checkpoints."""
    trainer, method = make_trainer(folder, save_strategy="no")
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    return summary(trainer, method)


def trained(folder: Path) -> Found:
    """The method inside Trainer, with the best model at its end; and from checkpoints of before and after the draw."""
    run = folder / "run"
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
    trainer, method = make_trainer(run, **best)
    trainer.train()
    found = summary(trainer, method)
    trainer.save_model(str(folder / "model"))
    found["plain"] = {}
    for name, changes in {
        "accumulated": {"gradient_accumulation_steps": 2},
        "packed": {"collator": ek.PackedCollator()},
        "rebalanced": {"collator": ek.PackedCollator(), "train_sampling_strategy": "batch_rebalance"},
        "bfloat16": {"bf16": True},
        "stock": {"converted": False},
    }.items():
        other, callback = make_trainer(folder / name, **{"save_strategy": "no", **changes})
        other.train()
        found["plain"][name] = summary(other, callback)
    try:
        found["resumed"] = {step: resumed(run, step) for step in (2, found["steps"], found["steps"] + 2)}
    except RuntimeError as error:
        # transformers 5.17's Trainer reads the optimizer of several processes to "cpu:0", which torch does not know.
        if processes.count() == 1 or "don't know how to restore data location" not in str(error):
            raise
        found["resumed"] = None
    return found


class Dies(TrainerCallback):
    """The second process ends without a word after some steps."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends it."""
        if state.global_step == 7 and rank() == 1:
            os._exit(3)


def dying(folder: Path) -> Found:
    """A run one process of which ends."""
    trainer, _ = make_trainer(folder / "dying", Dies())
    trainer.train()
    raise AssertionError("the other process's end was not noticed")


def sharded(folder: Path) -> Found:
    """A converted model in FSDP2, as one that is not sharded; and what a search says there."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    model = ek.convert(tiny_model()).train()
    ek.enable_gates(model)
    search = Search(model, SearchSettings(max_steps=2, interval=1))
    if processes.count() > 1:
        for layer in model.bert.encoder.layer:
            fully_shard(layer)
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found: Found = {"losses": [train(model, optimizer, step) for step in range(4)], "errors": []}
    found["state"] = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in state(model).items()}
    for refused in (search.after_step, lambda: ek.compact(model, some_ticket(model)), lambda: ek.convert(model)):
        try:
            refused()
        except ValueError as error:
            found["errors"].append(str(error))
    return found


SCENARIOS: dict[str, Callable[[Path], Found]] = {
    scenario.__name__: scenario
    for scenario in (plain_loop, stock_loop, accelerated, masked, disagreement, trained, dying, sharded)
}


def launch(folder: Path, *scenarios: str) -> list[Ended]:
    """Runs scenarios in two processes of their own."""
    return forked.start(2, find, folder, scenarios)


def find(folder: Path, scenarios: tuple[str, ...]) -> None:
    """What each of them does."""
    dist.init_process_group("gloo")
    for name in scenarios:
        torch.save(SCENARIOS[name](folder), folder / f"{name}-{rank()}.pt")
    dist.destroy_process_group()


def found_by(folder: Path, scenario: str) -> list[Found]:
    """What each process has written."""
    return [torch.load(folder / f"{scenario}-{number}.pt", weights_only=True) for number in range(2)]
