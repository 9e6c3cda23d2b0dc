"""Times whole training steps of a BERT on SST-2 batches: stock, converted, gated, masked and compact, in turn.

    python -m bench.step --model MODEL --data-dir GLUE/SST-2

Every variant takes the same batches, one after the other within each round, so that a machine whose speed drifts
slows all of them down. A step is forward, backward and the optimizer (torch's fused AdamW). What is printed are
medians over the rounds, and ratios to the stock step of the same round. A variant whose logits are wrong is an error.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import earlybert_kernels as ek
from earlybert import draw
from earlybert.data import EncodedExamples, TrainingOrder, collate, encode
from earlybert.machine import describe_machine, versions
from earlybert.tasks import get_task

WARM_UP = 3
TOLERANCE = 1e-4  # of float32 logits computed in another order


def main() -> None:
    """Parses the arguments, measures, prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub name of a BERT")
    parser.add_argument("--data-dir", required=True, type=Path, help="folder with SST-2's train.tsv and dev.tsv")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--pad-to", type=int, help="pad batches to so many tokens; default: to their longest example")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    examples = encode(tokenizer, get_task("sst2").load(args.data_dir).train, max_length=128, is_regression=False)
    torch.manual_seed(0)
    stock = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=2).to(device)
    models = variants(stock)
    batches = batches_of(examples, args, device)
    check(models, batches[0])
    times = measure(models, batches, device)

    tokens = statistics.mean(int(batch["attention_mask"].sum()) for batch in batches)
    print(f"{describe_machine(device)}, {versions()}")
    print(f"batch {args.batch_size}, {tokens:.0f} real tokens on average, {args.rounds} rounds\n")
    print("| step | ms, median (quartiles) | of stock |\n|---|---|---|")
    for name, seconds in times.items():
        low, middle, high = (1e3 * q for q in statistics.quantiles(seconds, n=4))
        ratio = statistics.median(own / base for own, base in zip(seconds, times["stock"], strict=True))
        print(f"| {name} | {middle:.0f} ({low:.0f}-{high:.0f}) | {ratio:.3f} |")


def variants(stock: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Copies of a stock model: converted, and with a random ticket of the paper's size masked and compact."""
    converted = ek.convert(copy.deepcopy(stock))
    gated = ek.enable_gates(copy.deepcopy(converted))
    scores = [[torch.rand_like(gate) for gate in gates] for gates in (ek.head_gates(gated), ek.neuron_gates(gated))]
    ticket = draw(*scores)
    return {
        "stock": stock,
        "converted": converted,
        "search (gates)": gated,
        "ticket, masked": ek.apply_ticket(copy.deepcopy(converted), ticket),
        "ticket, compact": ek.compact(copy.deepcopy(converted), ticket),
        "ticket, compact, stock modules": ek.compact(copy.deepcopy(stock), ticket),
    }


def batches_of(examples: EncodedExamples, args: argparse.Namespace, device: torch.device) -> list[dict]:
    """Random batches, as training takes them."""
    order = TrainingOrder(len(examples), batch_size=args.batch_size, accumulation_steps=1, seed=0)
    steps = zip(order.steps_from(0), range(WARM_UP + args.rounds), strict=False)
    return [collate(examples, indices, pad_to=args.pad_to, device=device) for (indices,), _ in steps]


@torch.no_grad()
def check(models: dict[str, torch.nn.Module], batch: dict) -> None:
    """Raises unless converted equals stock, and all three forms of the ticket are one function."""
    logits = {name: model.eval()(**batch).logits for name, model in models.items()}
    for name, same_as in (
        ("converted", "stock"),
        ("search (gates)", "stock"),
        ("ticket, masked", "ticket, compact, stock modules"),
        ("ticket, compact", "ticket, compact, stock modules"),
    ):
        torch.testing.assert_close(logits[name], logits[same_as], rtol=TOLERANCE, atol=TOLERANCE, msg=name)


def measure(models: dict[str, torch.nn.Module], batches: list[dict], device: torch.device) -> dict[str, list[float]]:
    """Seconds of each variant's step, round by round."""
    steps = {name: training_step(model.train(), device) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for number, batch in enumerate(batches):
        for name, step in steps.items():
            begin = time.perf_counter()
            step(batch)
            if number >= WARM_UP:
                times[name].append(time.perf_counter() - begin)
    return times


def training_step(model: torch.nn.Module, device: torch.device) -> Callable[[dict], None]:
    """One step of a model with an optimizer of its own; returns when the device is done."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step(batch: dict) -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


if __name__ == "__main__":
    main()
