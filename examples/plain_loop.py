"""The method in a training loop of one's own: search, draw and training of the ticket.

    python examples/plain_loop.py --data-dir glue_data/SST-2 --model bert-base-uncased

Without --data-dir, on the sentences of `earlybert demo`, which are made of Python's own documentation. Needs
`pip install 'earlybert-kernels[demo]'`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_scheduler

import earlybert_kernels as ek
from earlybert import Search, SearchSettings
from earlybert.programs.demo import model_folder
from earlybert.tasks import TASKS
from earlybert.tasks.base import Source


def main() -> float:
    """Trains and saves; returns the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="name or folder of a BERT; default: the MiniLM of earlybert demo")
    parser.add_argument("--data-dir", type=Path, help="folder of SST-2's train.tsv and dev.tsv")
    parser.add_argument("--output-dir", default="runs/plain")
    parser.add_argument("--examples", type=int, help="train on the first so many; default: all")
    parser.add_argument("--max-length", type=int, default=128, help="of a sentence, in tokens")
    args = parser.parse_args()

    name = args.model or str(model_folder())
    task = TASKS["sst2" if args.data_dir else "pydocs"]
    data = task.load(Source(data_dir=args.data_dir))
    tokenizer = AutoTokenizer.from_pretrained(name)

    def loader(sentences):
        texts = [text for (text,) in sentences.texts[: args.examples]]
        encoded = tokenizer(texts, truncation=True, max_length=args.max_length)["input_ids"]
        examples = [{"input_ids": ids, "labels": label} for ids, label in zip(encoded, sentences.labels, strict=False)]
        return DataLoader(examples, batch_size=32, shuffle=True, collate_fn=ek.PackedCollator())

    torch.manual_seed(1)
    train, dev = loader(data.train), loader(data.evals[""])
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=len(task.labels))
    ek.convert(model).train()

    search = Search(model, SearchSettings(max_steps=max(1, len(train) // 5)))  # 0.2 epochs
    weights = {"params": search.weights, "max_grad_norm": 1.0}
    gates = {"params": search.gates, "l1": 1e-4, "weight_decay": 0.0}
    optimizer = ek.AdamW([weights, gates], lr=5e-5)
    for batch in train:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if search.after_step():
            break
    print(search.record()["drawn_by"], search.step, ticket := search.finish())

    optimizer = ek.AdamW(model.parameters(), lr=1e-4, max_grad_norm=1.0)  # the Parameters are new ones
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=2 * len(train))
    for _ in range(2):
        for batch in train:
            model(**batch).loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

    model.eval().save_pretrained(args.output_dir)
    ticket.save(f"{args.output_dir}/ticket.json")
    with torch.no_grad():
        right = sum((model(**batch).logits.argmax(-1) == batch["labels"]).sum().item() for batch in dev)
    return right / len(dev.dataset)


if __name__ == "__main__":
    print(main())
