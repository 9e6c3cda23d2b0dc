"""Trains a sentence encoder of sentence-transformers with the method, and saves the small one.

    python examples/sentence_encoder.py --model sentence-transformers/all-MiniLM-L6-v2

What is near each other after training is what the two halves of a sentence have in common; the sentences are those of
`earlybert demo`. Needs `pip install 'earlybert-kernels[demo,trainer,sentence-transformers]'`.
"""

from __future__ import annotations

import argparse

from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    util,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

import earlybert_kernels as ek
from earlybert import EarlyBertCallback
from earlybert.programs.demo import model_folder
from earlybert.tasks import TASKS
from earlybert.tasks.base import Source


def main() -> float:
    """Trains and saves; returns how many of the second halves are nearest to their own first half."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="name or folder of a sentence encoder; default: the MiniLM of earlybert demo")
    parser.add_argument("--output-dir", default="runs/encoder")
    parser.add_argument("--epochs", type=float, default=2.2, help="of search and training together")
    parser.add_argument("--examples", type=int, help="train on the first so many; default: all")
    parser.add_argument("--max-length", type=int, default=64, help="of half a sentence, in tokens")
    args = parser.parse_args()

    def halves(sentences):
        words = [text.split() for (text,) in sentences.texts[: args.examples]]
        sides = ([row[: len(row) // 2] for row in words], [row[len(row) // 2 :] for row in words])
        first, second = ([" ".join(row) for row in side] for side in sides)
        return Dataset.from_dict({"anchor": first, "positive": second})

    data = TASKS["pydocs"].load(Source())
    train, dev = halves(data.train), halves(data.evals[""])
    model = SentenceTransformer(args.model or str(model_folder()), device="cpu")
    model.max_seq_length = args.max_length
    trainer = SentenceTransformerTrainer(
        model=ek.convert(model),
        args=SentenceTransformerTrainingArguments(
            output_dir=args.output_dir,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=32,
            learning_rate=1e-4,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=train,
        loss=MultipleNegativesRankingLoss(model),
        callbacks=[callback := EarlyBertCallback(search_learning_rate=5e-5)],
    )
    trainer.train()
    print(callback.record["drawn_by"], callback.record["step"], callback.ticket)
    model.save(args.output_dir)
    first, second = (model.encode(dev[side], convert_to_tensor=True) for side in ("anchor", "positive"))
    nearest = util.cos_sim(second, first).argmax(dim=1).tolist()
    return sum(found == number for number, found in enumerate(nearest)) / len(dev)


if __name__ == "__main__":
    print(main())
