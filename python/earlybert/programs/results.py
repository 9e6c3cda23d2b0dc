"""What a run leaves in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel

import earlybert_kernels as ek

from ..files import apply_umask, write_bytes
from ..loading import first_line
from ..run_directory import RunDirectory


def write_results(
    directory: RunDirectory,
    metrics: dict[str, Any],
    model: PreTrainedModel,
    tokenizer: Any,
    ticket: ek.Ticket | None,
    files: Mapping[str, bytes],
) -> None:
    """Writes all that a finished run has, `metrics.json` last.

    Args:
        directory: the run's.
        metrics: what `metrics.json` is to hold.
        model: as it was trained.
        tokenizer: the model's.
        ticket: what was trained; None for a dense run.
        files: by name, what the model has said.

    Raises:
        OSError: a file cannot be written.
    """
    from .plots import plot_run  # matplotlib takes a second

    if not metrics["arguments"]["discard_model"]:
        _write_model(directory, model, tokenizer)
    for name, content in files.items():
        write_bytes(directory.path / name, content)
    if ticket is not None:
        ticket.save(directory.ticket)
    plot_run(directory, metrics, ticket)
    directory.finish(metrics)


def _write_model(directory: RunDirectory, model: PreTrainedModel, tokenizer: Any) -> None:
    try:
        model.save_pretrained(directory.model)
    except SafetensorError as error:
        raise OSError(f"{directory.model}: the model cannot be written there: {first_line(error)}") from None
    tokenizer.save_pretrained(directory.model)
    for path in directory.model.iterdir():
        apply_umask(path)  # safetensors makes its files readable for their owner alone
