"""Everything that can be wrong with a run, found out before anything heavy is loaded or written."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import earlybert_kernels as ek

from ..arguments import FinetuneArguments
from ..environment import describe_machine, versions
from ..errors import MissingFileError, UsageError
from ..loading import read_config, read_tokenizer
from ..run_directory import RunDirectory
from ..tasks import Task, TaskData, get_task

#: The ops that a converted model for sequence classification is made of: on a CPU whole sublayers, elsewhere parts.
SUBLAYERS = ("embedding_layer_norm", "attention_sublayer", "feed_forward_sublayer")
PARTS = ("embedding_layer_norm", "attention", "feed_forward", "dropout_add_layer_norm")


@dataclass(frozen=True)
class Prepared:
    """A run that can begin.

    Attributes:
        args: the arguments, with all defaults filled in.
        directory: where the run writes.
        task, data: the task and all of its examples.
        config: the model's, with the task's labels.
        labels: the names that the model's own config gives its classes, by index.
        tokenizer: the model's.
        device: where the run computes.
        ticket: the ticket that was given, if one was.
        backends: per op, the backend that will run it; empty with stock modules.
    """

    args: FinetuneArguments
    directory: RunDirectory
    task: Task
    data: TaskData
    config: Any
    labels: dict[int, str]
    tokenizer: Any
    device: torch.device
    ticket: ek.Ticket | None
    backends: dict[str, str]

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return getattr(torch, self.args.dtype)


def prepare(args: FinetuneArguments) -> Prepared:
    """Checks a run and reads what is light: the model's config and tokenizer, the ticket, the data.

    Raises:
        UsageError: the run cannot be done as asked; the message says why.
    """
    args.check()
    _check_torch()
    args = args.resolved()
    directory = RunDirectory(args.output_dir)
    directory.check(asdict(args), resume=args.resume, overwrite=args.overwrite_output_dir)
    task = get_task(args.task)
    device = _device(args)
    config, labels = _config(args, task)
    ticket = None if args.ticket is None else load_ticket(args.ticket, config)
    backends = backends_in_use(config, device, getattr(torch, args.dtype)) if args.kernels == "auto" else {}
    tokenizer = read_tokenizer(args.model, config)
    data = task.load(None if args.data_dir is None else Path(args.data_dir))
    data = TaskData(
        data.train.first(args.max_train_examples),
        {name: examples.first(args.max_eval_examples) for name, examples in data.evals.items()},
    )
    for split, examples in (("train", data.train), *data.evals.items()):
        if not len(examples):
            raise UsageError(f"task {args.task}: expected examples in split {split or 'dev'}, found none")
    return Prepared(args, directory, task, data, config, labels, tokenizer, device, ticket, backends)


def _check_torch() -> None:
    """Raises UsageError in states of torch that would change what a run computes without being one of its arguments."""
    if torch.get_default_dtype() != torch.float32:
        raise UsageError(
            f"torch's default dtype is {torch.get_default_dtype()}, and runs are made with torch.float32: call "
            "torch.set_default_dtype(torch.float32) before"
        )
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise UsageError("autocast is on: call this outside of it, and ask for another dtype with --dtype")
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        raise UsageError("gradients are off (torch.no_grad or inference_mode): call this outside of it")


def environment(args: FinetuneArguments) -> dict[str, Any]:
    """What a run with these arguments would now be done with: `versions`, `machine` and `backend` of metrics.json.

    Raises:
        UsageError: the device, the model or the backend is not there.
    """
    args = args.resolved()
    device = _device(args)
    config, _ = _config(args, get_task(args.task))
    return {
        "versions": versions(),
        "machine": describe_machine(device),
        "backend": backends_in_use(config, device, getattr(torch, args.dtype)) if args.kernels == "auto" else {},
    }


def load_ticket(path: str, config: Any) -> ek.Ticket:
    """Reads a ticket and checks it against a model's config.

    Raises:
        UsageError: there is no such file, it is not a ticket, or it does not fit the model.
    """
    try:
        ticket = ek.Ticket.load(path)
        ticket.check_sizes(*unit_counts(config))
    except FileNotFoundError:
        raise MissingFileError(f"--ticket {path}: no such file") from None
    except ValueError as error:
        raise UsageError(f"--ticket {path}: {error}") from None
    return ticket


def unit_counts(config: Any) -> tuple[list[int], list[int]]:
    """Heads and neurons per layer of a model with this config, dense or compact."""
    kept = getattr(config, "ticket", None)
    if kept is not None:
        return [len(units) for units in kept.heads], [len(units) for units in kept.neurons]
    layers = config.num_hidden_layers
    return [config.num_attention_heads] * layers, [config.intermediate_size] * layers


def backends_in_use(config: Any, device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Which backend will run each op of a converted model here, found by running it on a few tokens.

    Raises:
        UsageError: `EARLYBERT_BACKEND` names a backend that cannot.
    """
    hidden, neurons = config.hidden_size, config.intermediate_size
    head_size = hidden // config.num_attention_heads
    x = torch.zeros(4, hidden, device=device, dtype=dtype)
    qkv = x.view(4, -1, head_size)
    square, row = torch.zeros(hidden, hidden, device=device, dtype=dtype), x[0]
    weight = torch.zeros(hidden, neurons, device=device, dtype=dtype)
    block = (x, weight.t(), weight[0], weight, row)
    ids = torch.zeros(4, dtype=torch.int64, device=device)
    packing = (torch.tensor([0, 4], dtype=torch.int32, device=device), 4)
    tiny = {
        "embedding_layer_norm": partial(ek.ops.embedding_layer_norm, ids, ids, ids, x, x, x, row, row),
        "attention": partial(ek.ops.attention, qkv, qkv, qkv, *packing),
        "attention_sublayer": partial(
            ek.ops.attention_sublayer, x, *packing, *(square, row) * 4, row, row, head_size=head_size
        ),
        "feed_forward": partial(ek.ops.feed_forward, *block),
        "feed_forward_sublayer": partial(ek.ops.feed_forward_sublayer, *block, row, row),
        "dropout_add_layer_norm": partial(ek.ops.dropout_add_layer_norm, x, x, row, row),
    }
    forced = os.environ.get("EARLYBERT_BACKEND")
    in_use = {}
    for op in SUBLAYERS if device.type == "cpu" else PARTS:
        reasons = []
        for backend in [forced] if forced else ek.ops.backends(op):
            try:
                with torch.inference_mode():
                    tiny[op](backend=backend)
            except (RuntimeError, ValueError) as error:
                reasons.append(str(error))
                continue
            in_use[op] = backend
            break
        else:
            what = f"EARLYBERT_BACKEND={forced}" if forced else "--kernels auto"
            raise UsageError(f"{what} cannot be used on device {device}: {'; '.join(reasons)}")
    return in_use


def _device(args: FinetuneArguments) -> torch.device:
    try:
        device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UsageError(f"--device {args.device}: {error}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {args.device}: torch finds no CUDA device here")
    if args.dtype == "float16" and device.type not in ("cuda", "cpu"):
        raise UsageError(
            f"--dtype float16 needs autocast and loss scaling, which cuda and cpu have; use bfloat16 on device {device}"
        )
    return device


def _config(args: FinetuneArguments, task: Task) -> tuple[Any, dict[int, str]]:
    """The model's config configured for the task, and the labels that it came with."""
    config, labels = read_config(args.model)
    task.configure(config)
    positions = config.max_position_embeddings
    if args.max_length > positions:
        raise UsageError(
            f"--max-length: expected at most {positions}, the model's longest input, found {args.max_length}"
        )
    return config, labels
