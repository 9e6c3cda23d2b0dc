"""Whole trainings by `transformers.Trainer`: the stock model, a converted one, EarlyBERT; and by `earlybert finetune`.

    python -m bench.trainer --model MODEL --data-dir GLUE/SST-2 --output trainer.json

Everything takes as many optimizer steps on the same sentences, from the same weights, and runs once in each round, in
an order of its own. Seconds are those of training: Trainer's `train_runtime`, and search and training of `finetune`.
The file is written anew after every round.
"""

from __future__ import annotations

import argparse
import logging
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

import earlybert_kernels as ek
from earlybert import EarlyBertCallback, FinetuneArguments, finetune
from earlybert.files import write_json
from earlybert.tasks import TASKS
from earlybert.tasks.base import Source

from . import provenance
from .report import tables
from .summary import paired_ratio

BATCH_SIZE = 32
LEARNING_RATE = 4e-5
#: As many steps as those of the search: the paper's 2.2 epochs, of which 0.2 are searched.
SEARCHES = 11

STOCK, OWN = "stock", "earlybert finetune"
#: What a variant is compared with: EarlyBERT in Trainer with EarlyBERT of the command line, all else with stock.
BASELINES = {"converted": STOCK, "converted, packed batches": STOCK, OWN: STOCK, "EarlyBertCallback": OWN}


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the arguments, measures, prints a Markdown table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or name of a BERT")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of SST-2's train.tsv and dev.tsv")
    parser.add_argument("--steps", type=int, default=110, help="optimizer steps of a training; default: %(default)s")
    parser.add_argument("--max-length", type=int, default=128, help="of a sentence, in tokens; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.steps < SEARCHES:
        parser.error(f"expected at least one round, and {SEARCHES} steps, of which one is searched")
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("earlybert").setLevel(logging.ERROR)

    variants = _variants(args.model, args.data_dir, args.steps, args.max_length)
    result: dict[str, Any] = {
        "kind": "trainer",
        **provenance.provenance(provenance.pick_device()),
        "model": Path(args.model).name,
        "steps": args.steps,
        "batch_size": BATCH_SIZE,
        "seconds": {name: [] for name in variants},
    }
    for _ in range(args.rounds):
        for name in random.sample(list(variants), len(variants)):
            result["seconds"][name].append(variants[name]())
        seconds = result["seconds"]
        result["ratio"] = {name: paired_ratio(seconds[name], seconds[base]) for name, base in BASELINES.items()}
        if args.output is not None:
            write_json(args.output, result)
    print(tables.trainer(result, BASELINES))


def _variants(model: str, data_dir: Path, steps: int, max_length: int) -> dict[str, Callable[[], float]]:
    """By name, what trains a model anew and gives the seconds."""
    task = TASKS["sst2"]
    examples = task.load(Source(data_dir=data_dir)).train
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer([text for (text,) in examples.texts], truncation=True, max_length=max_length)["input_ids"]
    data = [{"input_ids": each, "labels": label} for each, label in zip(ids, examples.labels, strict=True)]

    def by_trainer(*, converted: bool = True, packed: bool = False, search: bool = False) -> float:
        stock = AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(task.labels))
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                model=ek.convert(stock) if converted else stock,
                args=TrainingArguments(
                    folder,
                    max_steps=steps,
                    per_device_train_batch_size=BATCH_SIZE,
                    learning_rate=LEARNING_RATE,
                    logging_steps=25,
                    save_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                ),
                train_dataset=data,
                data_collator=ek.PackedCollator() if packed else None,
                processing_class=tokenizer,
                callbacks=[EarlyBertCallback()] if search else [],
            )
            seconds: float = trainer.train().metrics["train_runtime"]
        return seconds

    def by_finetune() -> float:
        with tempfile.TemporaryDirectory() as folder:
            searched = round(steps / SEARCHES)
            settings = FinetuneArguments(
                model=model,
                task="sst2",
                data_dir=str(data_dir),
                output_dir=folder,
                search_steps=searched,
                max_steps=steps - searched,
                max_length=max_length,
                max_eval_examples=BATCH_SIZE,
                checkpoint_steps=0,
            )
            seconds: float = finetune(settings)["seconds"]["total"]
        return seconds

    return {
        STOCK: lambda: by_trainer(converted=False),
        "converted": by_trainer,
        "converted, packed batches": lambda: by_trainer(packed=True),
        "EarlyBertCallback": lambda: by_trainer(packed=True, search=True),
        OWN: by_finetune,
    }


if __name__ == "__main__":
    main()
