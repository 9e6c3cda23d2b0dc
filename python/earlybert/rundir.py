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
#: Arguments that may be paths of what a run reads.
_INPUTS = ("model", "ticket", "data_dir")
#: What arguments.json has where this library wrote it.
_MARKS_OF_A_RUN = {"model", "task", "method"}


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
            OutputExistsError: the folder holds a run and neither `resume` nor `overwrite` is given, or it
                holds something else.
            UsageError: `resume` is given and the folder holds a run with other arguments; or `overwrite` is
                given and would remove what the run is to read.
        """
        if self.path.exists() and not self.path.is_dir():
            raise OutputExistsError(f"--output-dir {self.path}: expected a folder, found a file")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        if not self._holds_run():
            raise OutputExistsError(
                f"--output-dir {self.path} holds other files, which are no run's; give another folder, or an empty one"
            )
        if overwrite:
            self._check_inputs_stay(arguments)
        elif resume:
            self._check_same_run(arguments)
        else:
            state = "a finished run" if self.is_finished else "an unfinished run"
            raise OutputExistsError(
                f"--output-dir {self.path} holds {state}; give another folder, --resume to continue the run, "
                "or --overwrite-output-dir to replace it"
            )

    def _holds_run(self) -> bool:
        """Whether the folder is a run's: only there may files be removed, or taken for results."""
        if not self.arguments.exists():
            return False
        content = read_json(self.arguments)
        return isinstance(content, dict) and set(content) >= _MARKS_OF_A_RUN

    def _check_inputs_stay(self, arguments: dict[str, Any]) -> None:
        for name in _INPUTS:
            value = arguments.get(name)
            if value is None or not Path(value).exists():  # no path, or the name of something on the hub
                continue
            for output in self._outputs:
                if Path(value).resolve().is_relative_to(output.resolve()):
                    raise UsageError(
                        f"--overwrite-output-dir would remove {output}, which --{name.replace('_', '-')} {value} "
                        "is to be read from; give another --output-dir"
                    )

    def _check_same_run(self, arguments: dict[str, Any]) -> None:
        before = read_json(self.arguments)
        for name in sorted(set(before) | set(arguments)):
            if name not in _FREE_ARGUMENTS and before.get(name) != arguments.get(name):
                raise UsageError(
                    f"--resume: the run in {self.path} was started with --{name.replace('_', '-')} "
                    f"{before.get(name)}, and is now given {arguments.get(name)}; a run can only be "
                    "continued with the arguments that it was started with"
                )

    def start(self, arguments: dict[str, Any], *, resume: bool) -> None:
        """Makes the folder, which `check` has let pass, ready: without `resume`, an earlier run is removed."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not resume:
            for path in self._outputs:
                if path == self.model:
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        write_json(self.arguments, arguments)

    @property
    def _outputs(self) -> tuple[Path, ...]:
        """What a run writes and `start` removes, in this order: without metrics.json no run passes for finished."""
        return (
            self.metrics,
            self.checkpoint,
            self.gates,
            self.ticket,
            self.search_plot,
            self.ticket_plot,
            self.model,
        )

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
