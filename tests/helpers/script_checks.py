"""What works in a user's own script, found out by doing it: the table of docs/trainer.md."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import earlybert_kernels as ek
from earlybert.programs.demo import model_folder
from tests.helpers import many_processes
from tests.helpers.many_processes import SCENARIOS, Found, found_by, launch
from tests.helpers.tiny_bert import batch, some_ticket, tiny_model

PAGE = Path(__file__).parents[2] / "docs" / "trainer.md"
DONE, REFUSED, NOT_TRIED = "yes", "refused", "-"
#: What two processes do that are compared with one.
NAMES = ("plain_loop", "stock_loop", "accelerated", "masked", "disagreement", "trained", "sharded")

#: float32. One process adds the gradients of all rows of a batch up; of two, each those of its rows, and the all-reduce
#: adds the two sums, and halves them.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@dataclass
class Runs:
    """What one process and two have found, of the same global batches.

    Attributes:
        folder: of what one process writes.
        two: of what two have written.
    """

    folder: Path
    two: Path
    _found: dict[str, Found] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path) -> Runs:
        """Starts the two processes, and waits for them."""
        (folder / "one").mkdir()
        (folder / "two").mkdir()
        for process in launch(folder / "two", *NAMES):
            assert process.status == 0, process.output
        return cls(folder / "one", folder / "two")

    def single(self, name: str) -> Found:
        """What this process finds, once."""
        if name not in self._found:
            self._found[name] = SCENARIOS[name](self.folder)
        return self._found[name]


def assert_same_run(many: Found, single: Found, *, evaluated: bool = True) -> None:
    """The very ticket, and losses but for the order of additions."""
    for name in ("ticket", "steps", "rates", "best")[: 4 if evaluated else 3]:
        assert many.get(name) == single.get(name), name
    for name in ("losses", "eval")[: 2 if evaluated else 1]:
        torch.testing.assert_close(torch.tensor(many.get(name, [])), torch.tensor(single.get(name, [])), **CLOSE)


def assert_same_state(model: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """To the bit."""
    assert model.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in model.items())


def trains_alike(runs: Runs, name: str) -> tuple[str, str]:
    """Two processes come to one ticket and one model, and have the losses that one process has."""
    first, second = found_by(runs.two, name)
    single = runs.single(name)
    assert single["losses"][0] != single["losses"][-1]
    assert_same_run(first, single)
    assert first["losses"] == second["losses"] and first.get("ticket") == second.get("ticket")
    assert_same_state(first["state"], second["state"])
    return DONE, DONE


def of_trainer(runs: Runs, variant: str | None = None) -> tuple[str, str]:
    """The same of a run of Trainer, or of one with other arguments."""
    found = [*found_by(runs.two, "trained"), runs.single("trained")]
    first, second, single = found if variant is None else [run["plain"][variant] for run in found]
    assert single["steps"] < 12 and len(single["losses"]) == single["steps"] + 10
    if variant == "bfloat16":  # a loss of another order of additions is rounded to 3 digits, and is another one soon
        assert first["steps"] == single["steps"] and first["rates"] == single["rates"]
        torch.testing.assert_close(torch.tensor(first["losses"]), torch.tensor(single["losses"]), rtol=0.2, atol=0.2)
    else:
        assert_same_run(first, single)
    assert first["ticket"] == second["ticket"] and first["losses"] == second["losses"]
    assert_same_state(first["state"], second["state"])
    return DONE, DONE


def rebalanced(runs: Runs) -> tuple[str, str]:
    """Batches of other sizes in each process, so that one has no such: the two come to one ticket and one model."""
    first, second, single = (
        run["plain"]["rebalanced"] for run in [*found_by(runs.two, "trained"), runs.single("trained")]
    )
    for name in ("ticket", "steps", "losses"):
        assert first[name] == second[name], name
    assert_same_state(first["state"], second["state"])
    for found in (first, single):
        assert len(found["losses"]) == found["steps"] + 10
        assert found["losses"][0] != found["losses"][-1]
    return DONE, DONE


def saved(runs: Runs) -> tuple[str, str]:
    """What `save_model` writes is the trained model, and only the first process writes checkpoints."""
    for folder, found in ((runs.folder, runs.single("trained")), (runs.two, found_by(runs.two, "trained")[1])):
        loaded = AutoModelForSequenceClassification.from_pretrained(folder / "model")
        assert loaded.config.model_type == "compact_bert"
        assert_same_state(loaded.state_dict(), found["state"])
        assert (folder / "run" / "checkpoint-2" / "earlybert.pt").is_file()
    return DONE, DONE


def goes_on(runs: Runs, after: int | None) -> tuple[str, str]:
    """A run goes on as if it had not been interrupted, so many steps behind the draw, or at its beginning if None."""
    for found in (runs.single("trained"), *found_by(runs.two, "trained")):
        if found["resumed"] is None:
            pytest.skip("this version of transformers resumes no Trainer of several processes on a CPU")
        run = found["resumed"][2 if after is None else found["steps"] + after]
        assert run["ticket"] == found["ticket"] and run["losses"] == found["losses"] and run["rates"] == found["rates"]
    return DONE, DONE


def goes_on_elsewhere(runs: Runs) -> tuple[str, str]:
    """One process goes on from the checkpoints of two."""
    first, _ = found_by(runs.two, "trained")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(runs.two / "run", Path(folder, "run"))
        for step in (2, first["steps"], first["steps"] + 2):
            assert_same_run(many_processes.resumed(Path(folder, "run"), step), first, evaluated=False)
    return DONE, NOT_TRIED


def keeps_the_best(runs: Runs) -> tuple[str, str]:
    """The best of the ticket's checkpoints is the model at the end."""
    for found in (runs.single("trained"), *found_by(runs.two, "trained")):
        assert found["best"] > found["steps"]
        # There is an evaluation every 2 steps.
        of_ticket = found["eval"][found["steps"] // 2 :]
        assert of_ticket[(found["best"] - found["steps"]) // 2 - 1] == min(of_ticket)
    return DONE, DONE


def search_in_shards(runs: Runs) -> tuple[str, str]:
    """Refused, and so is whatever changes a model in shards."""
    for found in found_by(runs.two, "sharded"):
        after_step, compact, convert = found["errors"]
        assert "fully_shard" in after_step and "search with DistributedDataParallel" in after_step
        assert "call compact before" in compact and "call convert before" in convert
    return NOT_TRIED, REFUSED


def sentence_encoder(runs: Runs) -> tuple[str, str]:
    """Embeddings of a converted encoder are stock's; a compact one is saved and loaded."""
    from sentence_transformers import SentenceTransformer

    def embeddings(model: SentenceTransformer) -> torch.Tensor:
        return torch.as_tensor(model.encode(["a good film", "one that nobody needs"], show_progress_bar=False))

    model = SentenceTransformer(str(model_folder()), device="cpu")
    expected = embeddings(model)
    torch.testing.assert_close(embeddings(ek.convert(model)), expected, **CLOSE)
    ek.compact(model, some_ticket(model[0].auto_model))
    folder = str(runs.folder / "encoder")
    model.save(folder)
    loaded = SentenceTransformer(folder, device="cpu")
    torch.testing.assert_close(embeddings(ek.convert(loaded)), embeddings(model), **CLOSE)
    return DONE, NOT_TRIED


def adapters(runs: Runs) -> tuple[str, str]:
    """LoRA on a compact model has gradients, and is merged and converted."""
    from peft import LoraConfig, get_peft_model

    stock, inputs = tiny_model(), batch() | {"labels": torch.tensor([0, 1, 2, 0])}
    config = LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
    model = get_peft_model(ek.compact(stock, some_ticket(stock)), config)
    outputs = model(**inputs)
    outputs.loss.backward()
    gradients = [p.grad for name, p in model.named_parameters() if "lora" in name]
    assert len(gradients) == 12 and all(gradient.any() for gradient in gradients)
    merged = ek.convert(model.merge_and_unload())
    torch.testing.assert_close(merged(**inputs).logits, outputs.logits, rtol=1e-4, atol=1e-5)
    return DONE, NOT_TRIED


def adapters_inside(runs: Runs) -> tuple[str, str]:
    """LoRA inside a fused layer raises."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(ek.convert(tiny_model()), LoraConfig(r=2, target_modules=["query", "value"]))
    with pytest.raises(TypeError, match="merge_and_unload"):
        model(**batch())
    return REFUSED, NOT_TRIED


CHECKS: dict[str, Callable[[Runs], tuple[str, str]]] = {
    "`Trainer`: search, draw, training": of_trainer,
    "`Trainer`: a stock model": lambda runs: of_trainer(runs, "stock"),
    "`Trainer`: packed batches": lambda runs: of_trainer(runs, "packed"),
    "`Trainer`: batches rebalanced by length": rebalanced,
    "`Trainer`: gradient accumulation": lambda runs: of_trainer(runs, "accumulated"),
    "`Trainer`: bfloat16": lambda runs: of_trainer(runs, "bfloat16"),
    "`Trainer`: saved and loaded": saved,
    "`Trainer`: resumed before the draw": lambda runs: goes_on(runs, None),
    "`Trainer`: resumed at the draw": lambda runs: goes_on(runs, 0),
    "`Trainer`: resumed after the draw": lambda runs: goes_on(runs, 2),
    "`Trainer`: resumed from checkpoints of two processes": goes_on_elsewhere,
    "`Trainer`: best model at the end": keeps_the_best,
    "`Search` in a loop, DistributedDataParallel": lambda runs: trains_alike(runs, "plain_loop"),
    "the same of a stock model": lambda runs: trains_alike(runs, "stock_loop"),
    "`Search` in a loop, Accelerate": lambda runs: trains_alike(runs, "accelerated"),
    "masked units and frozen Parameters": lambda runs: trains_alike(runs, "masked"),
    "FSDP2 (`fully_shard`): training a converted model": lambda runs: trains_alike(runs, "sharded"),
    "FSDP2: search": search_in_shards,
    "sentence-transformers: embeddings, saved and loaded": sentence_encoder,
    "PEFT: LoRA on a compact model, merged and converted": adapters,
    "PEFT: LoRA inside a converted model": adapters_inside,
}


def row(name: str, runs: Runs) -> str:
    """A row of the table; an AssertionError where something does not do what it should."""
    return f"| {name} | {' | '.join(CHECKS[name](runs))} |"


def main() -> None:
    """Writes the table to its place in the page."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs.make(Path(folder))
        rows = [row(name, runs) for name in CHECKS]
    page = PAGE.read_text(encoding="utf-8")
    head = "| | one process | two processes |\n|---|---|---|\n"
    before, rest = page.split(head)
    after = rest[rest.index("\n\n") :]
    PAGE.write_text(before + head + "\n".join(rows) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
