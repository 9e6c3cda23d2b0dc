"""Fine-tunes a BERT on SST-2 with transformers.Trainer: search, draw and training of the ticket in one run.

    python examples/trainer_glue.py --data-dir glue_data/SST-2 --model bert-base-uncased

Without --data-dir, on the sentences of `earlybert demo`, which are made of Python's own documentation. Needs
`pip install 'earlybert-kernels[demo,trainer]'`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, set_seed

import earlybert_kernels as ek
from earlybert import EarlyBertCallback
from earlybert.programs.demo import model_folder
from earlybert.tasks import TASKS
from earlybert.tasks.base import Source


def main() -> dict[str, float]:
    """Trains, evaluates and saves; returns what the evaluation found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="name or folder of a BERT; default: the MiniLM of earlybert demo")
    parser.add_argument("--data-dir", type=Path, help="folder of SST-2's train.tsv and dev.tsv")
    parser.add_argument("--output-dir", default="runs/trainer")
    parser.add_argument("--epochs", type=float, default=2.2, help="of search and training together")
    parser.add_argument("--examples", type=int, help="train on the first so many; default: all")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--max-length", type=int, default=128, help="of a sentence, in tokens")
    args = parser.parse_args()

    name = args.model or str(model_folder())
    task = TASKS["sst2" if args.data_dir else "pydocs"]
    data = task.load(Source(data_dir=args.data_dir))
    tokenizer = AutoTokenizer.from_pretrained(name)
    set_seed(args.seed)  # of the new classifier
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=len(task.labels))

    def encode(sentences, limit=None):
        texts = [text for (text,) in sentences.texts[:limit]]
        encoded = tokenizer(texts, truncation=True, max_length=args.max_length)["input_ids"]
        return [{"input_ids": ids, "labels": label} for ids, label in zip(encoded, sentences.labels, strict=False)]

    trainer = Trainer(
        model=ek.convert(model),
        args=TrainingArguments(
            output_dir=args.output_dir,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=32,
            learning_rate=1e-4,
            logging_steps=10,
            seed=args.seed,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=encode(data.train, args.examples),
        eval_dataset=encode(data.evals[""], args.examples),
        processing_class=tokenizer,
        compute_metrics=lambda found: {"accuracy": (found.predictions.argmax(-1) == found.label_ids).mean().item()},
        callbacks=[callback := EarlyBertCallback(search_learning_rate=5e-5)],
    )
    trainer.train()
    print(callback.record["drawn_by"], callback.record["step"], callback.ticket)
    trainer.save_model()
    return trainer.evaluate()


if __name__ == "__main__":
    print(main())
