"""Everything that can be wrong with a run, found out before anything heavy is loaded or written."""

from __future__ import annotations

import copy
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

import earlybert_kernels as ek
from earlybert_kernels.models import family_of_type

from .. import processes
from ..arguments import RunArguments
from ..environment import describe_machine, versions
from ..errors import MissingFileError, UsageError
from ..launcher import local_rank
from ..loading import first_line, read_config, read_tokenizer, reading
from ..run_directory import RunDirectory
from ..search.result import SearchResult
from ..tasks import Source, Task, TaskData
from .tracking import check_trackers


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
        search: the search whose result was given, if one was.
        backends: per op, the backend that will run it; empty with stock modules.
    """

    args: RunArguments
    directory: RunDirectory
    task: Task
    data: TaskData
    config: Any
    labels: dict[int, str]
    tokenizer: Any
    device: torch.device
    ticket: ek.Ticket | None
    search: SearchResult | None
    backends: dict[str, str]

    @property
    def origin(self) -> str:
        """What the model was given by, for messages."""
        return f"{self.args.model_flag} {self.args.model_source}"

    @property
    def environment(self) -> dict[str, Any]:
        """What the run is done with: `versions`, `machine` and `backend` of metrics.json."""
        return _environment(self.device, self.backends)

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return getattr(torch, self.args.dtype)


def prepare(args: RunArguments, task: Task, source: Source, long_length: int | None = None) -> Prepared:
    """Checks a run and reads what is light: the model's config and tokenizer, the ticket, the data.

    Args:
        args: which have been checked by themselves.
        task: what the run trains on.
        source: where its examples are.
        long_length: tokens of an input in a part of the run that has longer ones than `max_length`, if there is one.

    Raises:
        UsageError: the run cannot be done as asked; the message says why.
    """
    _check_torch()
    _check_processes(args)
    check_trackers(args.trackers)
    args = args.resolved(task.max_length)
    directory = RunDirectory(args.output_dir)
    if processes.rank() == 0:  # which alone writes there
        directory.check(asdict(args), resume=args.resume, overwrite=args.overwrite_output_dir)
    device = _device(args)
    head = task.model_class.__name__.removeprefix("AutoModel")
    config, labels = read_config(args.model_source, args.model_flag, head)
    _check_length("--max-length", args.input_length, config)
    if long_length is not None:
        _check_length("--long-length", long_length, config)
    ticket = None if args.ticket is None else load_ticket(args.ticket, config)
    search = None if args.search_from is None else load_search(args, task.name, config)
    backends = _backends(args, config, device)
    tokenizer = read_tokenizer(args.tokenizer_source, config, args.tokenizer_flag)
    data = task.load(source)
    task = task.fitted(data)
    task.configure(config)
    _check_distillation(args, task, config)
    data = TaskData(
        data.train.first(args.max_train_examples),
        {name: examples.first(args.max_eval_examples) for name, examples in data.evals.items()},
    )
    for split, examples in (("train", data.train), *data.evals.items()):
        if not len(examples):
            raise UsageError(f"task {task.name}: expected examples in split {split or 'dev'}, found none")
    return Prepared(args, directory, task, data, config, labels, tokenizer, device, ticket, search, backends)


def _check_processes(args: RunArguments) -> None:
    """Raises UsageError unless every process has an example of each batch."""
    if args.batch_size < processes.count():
        raise UsageError(
            f"--batch-size: expected at least {processes.count()}, the number of processes, which share the examples "
            f"of each batch, found {args.batch_size}"
        )


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


def environment(args: RunArguments) -> dict[str, Any]:
    """What a run with these arguments would now be done with: `versions`, `machine` and `backend` of metrics.json.

    Raises:
        UsageError: the device, the model or the backend is not there.
    """
    device = _device(args)
    config, _ = read_config(args.model_source, args.model_flag)
    return _environment(device, _backends(args, config, device))


def _environment(device: torch.device, backends: dict[str, str]) -> dict[str, Any]:
    return {"versions": versions(), "machine": describe_machine(device), "backend": backends}


def _backends(args: RunArguments, config: Any, device: torch.device) -> dict[str, str]:
    return backends_in_use(config, device, getattr(torch, args.dtype)) if args.kernels == "auto" else {}


def load_ticket(path: str, config: Any) -> ek.Ticket:
    """Reads a ticket, or that of a run's folder, and checks it against a model's config.

    Raises:
        UsageError: there is no such file, it is not a ticket, or it does not fit the model.
    """
    try:
        ticket = ek.Ticket.load(RunDirectory(path).ticket if Path(path).is_dir() else path)
        ticket.check_sizes(*unit_counts(config))
    except FileNotFoundError:
        raise MissingFileError(f"--ticket {path}: no such file") from None
    except ValueError as error:
        raise UsageError(f"--ticket {path}: {error}") from None
    return ticket


def load_search(args: RunArguments, task: str, config: Any) -> SearchResult:
    """Reads the search that `--search-from` names and checks it against the run's model and task.

    Raises:
        UsageError: as `SearchResult.read`, or the search is of a model of other sizes.
    """
    assert args.search_from is not None
    found = SearchResult.read(args.search_from, model=args.model_source, task=task)
    sizes = tuple([len(layer) for layer in kind] for kind in found.scores()[args.score])
    if sizes != unit_counts(config):
        raise UsageError(
            f"--search-from {args.search_from}: expected scores of {unit_counts(config)} heads and neurons, "
            f"found {sizes}"
        )
    return found


def _check_distillation(args: RunArguments, task: Task, config: Any) -> None:
    """Raises UsageError if what the task's model says is not one row of logits an example."""
    if args.distillation and config.problem_type is None:
        raise UsageError(
            f"--distillation: task {task.name} has none; expected one of classes, labels or numbers of a text"
        )


def unit_counts(config: Any) -> tuple[list[int], list[int]]:
    """Heads and neurons per layer of a model with this config, dense or compact."""
    kept = getattr(config, "ticket", None)
    if kept is not None:
        return [len(units) for units in kept.heads], [len(units) for units in kept.neurons]
    return family_of_type(config.model_type).units(config)


def backends_in_use(config: Any, device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Which backend will run each op of a converted model here: what a layer of its sizes does with four tokens.

    Raises:
        UsageError: `EARLYBERT_BACKEND` names a backend that cannot, or the config says what no model can be.
    """
    small = copy.deepcopy(config.dense() if hasattr(config, "dense") else config)
    small.num_hidden_layers = 1
    small.vocab_size = (small.pad_token_id or 0) + 2
    small.max_position_embeddings = family_of_type(config.model_type).first_position(small) + 4
    with reading("no model can be made of its config.json"):
        model = AutoModel.from_config(small)
    model = ek.convert(model).to(device)
    tokens = torch.arange(4, device=device)[None]
    offsets = {"cu_seq_lens_q": torch.tensor([0, 4], dtype=torch.int32, device=device), "max_length_q": 4}
    try:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32), ek.ops.record_backends() as used:
            model(torch.ones_like(tokens), position_ids=tokens, **offsets)
    except (RuntimeError, ValueError) as error:
        forced = os.environ.get("EARLYBERT_BACKEND")
        what = f"EARLYBERT_BACKEND={forced}" if forced else "--kernels auto"
        raise UsageError(f"{what} cannot be used on device {device}: {error}") from None
    return used


def find_device(name: str | None) -> torch.device:
    """The device of that name: cuda where there is one, else cpu, where none is given.

    Raises:
        UsageError: it is not there.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UsageError(f"--device {name}: {error}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: torch finds no CUDA device here")
    try:
        with torch.autocast(device.type, enabled=False):
            torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:  # as torch says that it is not built for one
        raise UsageError(f"--device {name}: torch cannot use it here: {first_line(error)}") from None
    return device


def _device(args: RunArguments) -> torch.device:
    device = find_device(args.device if processes.count() == 1 else _own_device(args.device))
    if args.dtype == "float16" and device.type not in ("cuda", "cpu"):
        raise UsageError(
            f"--dtype float16 needs autocast and loss scaling, which cuda and cpu have; use bfloat16 on device {device}"
        )
    return device


def _own_device(name: str | None) -> str | None:
    """The device of this process, of several, each of which has a GPU of its own where they train on GPUs."""
    if not torch.cuda.is_available() or not (name or "cuda").startswith("cuda"):
        return name
    if name not in (None, "cuda"):
        raise UsageError(f"--device {name}: each of {processes.count()} processes has a GPU of its own; give cuda")
    number, there = local_rank(), torch.cuda.device_count()
    if number >= there:
        raise UsageError(f"--device cuda: process {number} of this machine has no GPU: there are {there}")
    torch.cuda.set_device(number)
    return f"cuda:{number}"


def _check_length(flag: str, length: int, config: Any) -> None:
    longest = family_of_type(config.model_type).longest(config)
    if length > longest:
        raise UsageError(f"{flag}: expected at most {longest}, the model's longest input, found {length}")
