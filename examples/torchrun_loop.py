"""The method in a training loop of one's own, in several processes.

    torchrun --nproc-per-node 2 examples/torchrun_loop.py --model bert-base-uncased

On the sentences of `earlybert demo`, which are made of Python's own documentation. Needs
`pip install 'earlybert-kernels[demo]'`.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
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
    parser.add_argument("--output-dir", default="runs/torchrun")
    parser.add_argument("--examples", type=int, help="train on the first so many; default: all")
    parser.add_argument("--max-length", type=int, default=128, help="of a sentence, in tokens")
    parser.add_argument(
        "--batch-size", type=int, default=32, help="of all processes together, a multiple of their number"
    )
    args = parser.parse_args()

    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    dist.init_process_group()  # NCCL for GPUs, gloo for processors
    rank, count = dist.get_rank(), dist.get_world_size()
    if device.type != "cpu":
        device = torch.device(device.type, rank % torch.accelerator.device_count())
        torch.accelerator.set_device_index(device.index)

    name, task = args.model or str(model_folder()), TASKS["pydocs"]
    data = task.load(Source())
    tokenizer = AutoTokenizer.from_pretrained(name)
    collate = ek.PackedCollator()

    def encode(sentences, limit):
        texts = [text for (text,) in sentences.texts[:limit]]
        encoded = tokenizer(texts, truncation=True, max_length=args.max_length)["input_ids"]
        return [{"input_ids": ids, "labels": label} for ids, label in zip(encoded, sentences.labels, strict=False)]

    train, dev = encode(data.train, args.examples), encode(data.evals[""], args.examples)
    steps_per_epoch = len(train) // args.batch_size

    def batches(epoch):
        """Of each step every count-th example by length, so that all processes have about as many tokens."""
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(epoch)).tolist()
        for step in range(steps_per_epoch):
            chosen = [train[i] for i in order[step * args.batch_size : (step + 1) * args.batch_size]]
            batch = collate(sorted(chosen, key=lambda example: len(example["input_ids"]))[rank::count])
            yield {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}

    torch.manual_seed(1)  # the same new head in all processes
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=len(task.labels)).to(device)
    ek.convert(model).train()
    torch.manual_seed(1 + rank)  # and other dropout in each

    search = Search(model, SearchSettings(max_steps=max(1, steps_per_epoch // 5)))  # 0.2 epochs
    weights = {"params": search.weights, "max_grad_norm": 1.0}
    gates = {"params": search.gates, "l1": 1e-4, "weight_decay": 0.0}
    optimizer = ek.AdamW([weights, gates], lr=5e-5)
    wrapped = DistributedDataParallel(model)  # behind the gates, whose gradients it averages too
    for batch in batches(0):
        wrapped(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if search.after_step():
            break
    ticket = search.finish()  # the same in all processes, or an error
    del wrapped  # it knows the Parameters of before

    wrapped = DistributedDataParallel(model)
    optimizer = ek.AdamW(model.parameters(), lr=1e-4, max_grad_norm=1.0)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=2 * steps_per_epoch)
    for epoch in (1, 2):
        for batch in batches(epoch):
            wrapped(**batch).loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

    del wrapped  # one that outlives the process group may hang at its end (torch 2.13, gloo)
    model.eval()
    right = torch.zeros((), device=device)
    with torch.no_grad():
        for first in range(rank * args.batch_size, len(dev), count * args.batch_size):
            batch = collate(dev[first : first + args.batch_size])
            batch = {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}
            right += (model(**batch).logits.argmax(-1) == batch["labels"]).sum()
    dist.all_reduce(right)
    if rank == 0:
        print(search.record()["drawn_by"], search.step, ticket)
        model.save_pretrained(args.output_dir)
        tokenizer.save_pretrained(args.output_dir)
        ticket.save(f"{args.output_dir}/ticket.json")
    dist.destroy_process_group()
    return right.item() / len(dev)


if __name__ == "__main__":
    print(main())
