"""The folder of a run: what is in it, and how it is written so that nothing is ever half there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from earlybert_kernels import Ticket

from .errors import MissingFileError, OutputExistsError, UsageError

#: Arguments that do not change a run's result, and may differ when it is resumed.
_FREE_ARGUMENTS = ("output_dir", "resume", "overwrite_output_dir", "checkpoint_steps")


class RunDirectory:
    """The files of one run.

    `metrics.json` is written last: a folder that has it holds a finished run.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.arguments = self.path / "arguments.json"
        self.checkpoint = self.path / "checkpoint.pt"
        self.gates = self.path / "gates.safetensors"
        self.metrics = self.path / "metrics.json"
        self.model = self.path / "model"
        self.search_plot = self.path / "search.png"
        self.ticket = self.path / "ticket.json"
        self.ticket_plot = self.path / "ticket.png"

    def check(self, arguments: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Checks, without writing, that a run with these arguments may use the folder.

        Raises:
            OutputExistsError: the folder is in use and neither `resume` nor `overwrite` is given.
            UsageError: `resume` is given and the folder holds a run with other arguments.
        """
        if self.path.exists() and not self.path.is_dir():
            raise OutputExistsError(f"--output-dir {self.path}: expected a folder, found a file")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        if not (resume or overwrite):
            state = "a finished run" if self.is_finished else "files already"
            raise OutputExistsError(
                f"--output-dir {self.path} holds {state}; give another folder, --resume to continue a run, "
                "or --overwrite-output-dir to replace it"
            )
        if resume and self.arguments.exists():
            before = read_json(self.arguments)
            for name in sorted(set(before) | set(arguments)):
                if name not in _FREE_ARGUMENTS and before.get(name) != arguments.get(name):
                    raise UsageError(
                        f"--resume: the run in {self.path} was started with --{name.replace('_', '-')} "
                        f"{before.get(name)}, and is now given {arguments.get(name)}; a run can only be "
                        "continued with the arguments that it was started with"
                    )

    def start(self, arguments: dict[str, Any], *, resume: bool) -> None:
        """Makes the folder ready: without `resume`, files of an earlier run are removed."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not resume:
            # metrics.json first: what is left of a finished run must not pass for one.
            for path in (
                self.metrics,
                self.checkpoint,
                self.gates,
                self.ticket,
                self.search_plot,
                self.ticket_plot,
            ):
                path.unlink(missing_ok=True)
            shutil.rmtree(self.model, ignore_errors=True)
        write_json(self.arguments, arguments)

    @property
    def is_finished(self) -> bool:
        """Whether the folder holds all that a run writes."""
        return self.metrics.exists()

    def read_metrics(self) -> dict[str, Any]:
        """What the run wrote.

        Raises:
            MissingFileError: there is no finished run.
        """
        if not self.is_finished:
            raise MissingFileError(f"{self.metrics}: no such file; expected the folder of a finished run")
        return read_json(self.metrics)

    def read_ticket(self) -> Ticket:
        """The ticket that the run trained.

        Raises:
            MissingFileError: there is none.
            UsageError: the file is not a ticket.
        """
        try:
            return Ticket.load(self.ticket)
        except FileNotFoundError:
            raise MissingFileError(f"{self.ticket}: no such file; expected the ticket of the run") from None
        except ValueError as error:
            raise UsageError(str(error)) from None

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replaces the checkpoint in one step."""
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The checkpoint, if there is one, with tensors on the CPU."""
        if not self.checkpoint.exists():
            return None
        return torch.load(self.checkpoint, map_location="cpu", weights_only=True)


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UsageError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: expected JSON, found {error}") from None


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file in one step: a reader finds the old file, or all of the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
