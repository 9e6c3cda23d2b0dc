"""Fine-tunes a BERT on a table of one's own, with labels that are words, by transformers.Trainer.

    python examples/own_labels.py --file complaints.csv --text-column text --label-column department

Without --file, on a table that is made here. Needs `pip install 'earlybert-kernels[demo,trainer]'`.
"""

from __future__ import annotations

import argparse
import random

from datasets import Dataset, load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, pipeline

import earlybert_kernels as ek
from earlybert import EarlyBertCallback
from earlybert.programs.demo import model_folder

#: By department, what complaints that go there are about.
SUBJECTS = {
    "billing": ["invoice", "price", "refund", "payment"],
    "delivery": ["parcel", "driver", "address", "package"],
    "support": ["password", "screen", "update", "error"],
}


def made_up(rows: int) -> Dataset:
    """A table of complaints."""
    generator = random.Random(0)
    labels = [generator.choice(list(SUBJECTS)) for _ in range(rows)]
    texts = [f"there is a problem with the {generator.choice(SUBJECTS[label])} again" for label in labels]
    return Dataset.from_dict({"text": texts, "label": labels})


def main() -> dict[str, float]:
    """Trains, evaluates and saves; returns what the evaluation found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="name or folder of a BERT; default: the MiniLM of earlybert demo")
    parser.add_argument("--file", help="a .csv with a header")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--output-dir", default="runs/own-labels")
    parser.add_argument("--epochs", type=float, default=2.2, help="of search and training together")
    parser.add_argument("--examples", type=int, default=600, help="rows of the table that is made here")
    parser.add_argument("--max-length", type=int, default=128, help="of a text, in tokens")
    args = parser.parse_args()

    name = args.model or str(model_folder())
    tokenizer = AutoTokenizer.from_pretrained(name)
    table = load_dataset("csv", data_files=args.file, split="train") if args.file else made_up(args.examples)
    names = sorted(set(table[args.label_column]))
    ids = {label: number for number, label in enumerate(names)}

    def encode(row):
        encoded = tokenizer(row[args.text_column], truncation=True, max_length=args.max_length)
        return {"input_ids": encoded["input_ids"], "labels": ids[row[args.label_column]]}

    data = table.map(encode, remove_columns=table.column_names).train_test_split(test_size=0.1, seed=1)
    model = AutoModelForSequenceClassification.from_pretrained(
        name, num_labels=len(names), label2id=ids, id2label=dict(enumerate(names))
    )
    trainer = Trainer(
        model=ek.convert(model),
        args=TrainingArguments(
            output_dir=args.output_dir,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=32,
            learning_rate=1e-4,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        processing_class=tokenizer,
        compute_metrics=lambda found: {"accuracy": (found.predictions.argmax(-1) == found.label_ids).mean().item()},
        callbacks=[callback := EarlyBertCallback(search_learning_rate=5e-5)],
    )
    trainer.train()
    print(callback.record["drawn_by"], callback.record["step"], callback.ticket)
    trainer.save_model()
    classify = pipeline("text-classification", model=args.output_dir)  # a compact model, with the labels' names
    print(classify(table[0][args.text_column]))
    return trainer.evaluate()


if __name__ == "__main__":
    print(main())
