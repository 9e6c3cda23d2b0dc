"""What a run's model says of other examples, and how good that is."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig

import earlybert_kernels as ek

from ..arguments import FinetuneArguments
from ..errors import MissingFileError, UsageError
from ..files import write_bytes
from ..loading import read_tokenizer, reading
from ..run_directory import RunDirectory, check_output
from ..tasks import Task
from ..training.data import EncodedExamples
from ..training.evaluation import predict as outputs_of
from .finetune import task_of
from .predictions import check_some, render
from .preparation import find_device


def predict(run: str, file: str, output: str, *, overwrite: bool = False, device: str | None = None) -> int:
    """Writes what the model of a finished run says of the texts of a file, one by one.

    Args:
        run: the run's folder.
        file: in the format that the run was trained on; it needs no labels.
        output: `.jsonl`, a line for each text with `label` and `score`, its probability; with `labels`, and `scores` of
            all there are; with `tags` and `scores`, one for each word; or with `prediction`, a number; for each
            question with `prediction_text` and `id`. Or `.tsv`, as GLUE wants it handed in: `index` and `prediction`,
            labels spelled as the task's files do, lists as JSON does.
        overwrite: replace the output if it is there.
        device: as torch names it; default: cuda where there is one, else cpu.

    Returns:
        How many texts there are.

    Raises:
        UsageError: the run is not finished or the file is not as expected.
    """
    path = check_output(Path(output), overwrite=overwrite)
    if path.suffix not in (".jsonl", ".tsv"):
        raise UsageError(f"{output}: expected a file named .jsonl or .tsv to write to")
    if path == Path(file).resolve():
        raise UsageError(f"{output}: the file of the texts; give another path to write to")
    task, encoded, outputs = _apply(run, file, labelled=False, device=device)
    answers = task.answers(outputs, encoded)
    write_bytes(path, render(task, answers, path.suffix))
    return len(answers)


def evaluate(run: str, file: str, *, device: str | None = None) -> dict[str, float]:
    """The task's metrics and the mean loss of the model of a finished run on a file with labels.

    Args:
        run: the run's folder.
        file: in the format that the run was trained on.
        device: as torch names it; default: cuda where there is one, else cpu.

    Raises:
        UsageError: the run is not finished or the file is not as expected.
    """
    task, encoded, outputs = _apply(run, file, labelled=True, device=device)
    return task.evaluate(outputs, encoded).metrics


def _apply(
    run: str, file: str, *, labelled: bool, device: str | None
) -> tuple[Task, EncodedExamples, list[np.ndarray]]:
    directory = RunDirectory(run)
    metrics = directory.read_metrics()
    directory.check_read()
    known = {field.name for field in fields(FinetuneArguments)}
    if metrics["task"] == "mlm":
        raise UsageError(f"{run}: expected a run of earlybert finetune, found one of earlybert pretrain")
    with reading(f"{directory.metrics}: expected the arguments of a run"):
        args = FinetuneArguments(**{name: value for name, value in metrics["arguments"].items() if name in known})
        task = task_of(args)
    if not directory.model.is_dir():
        raise MissingFileError(f"{directory.model}: no such folder; expected the model of the run")
    where = find_device(device)
    unread = f"{directory.model}: no model could be read there"
    with reading(unread):
        config = AutoConfig.from_pretrained(directory.model)
    task = task.of_model(config)
    examples = check_some(task.read_file(Path(file), labelled=labelled), file)
    tokenizer = read_tokenizer(str(directory.model), config, "run")
    with reading(unread):
        model = task.model_class.from_pretrained(directory.model, dtype=torch.float32)
    encoded = task.encode(tokenizer, examples, args.input_length)
    if args.kernels == "auto":
        model = ek.convert(model)
    outputs = outputs_of(
        model.to(where),
        encoded,
        task.outputs,
        batch_size=args.eval_batch_size,
        pad_to=args.max_length if args.padding == "max_length" else None,
        dtype=getattr(torch, args.dtype),
        device=where,
    )
    return task, encoded, outputs
