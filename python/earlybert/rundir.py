"""The folder of a run: what is in it, and how it is written so that nothing is ever half there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from earlybert_kernels import Ticket

from .errors import MissingFileError, OutputExistsError, UsageError
from .files import PARTIAL, json_bytes, read_json, replacing, sha256, write_bytes, write_json

#: Arguments that do not change a run's result, and may differ when it is resumed.
_FREE_ARGUMENTS = ("output_dir", "resume", "overwrite_output_dir", "checkpoint_steps")
#: Arguments that may be paths of what a run reads.
_INPUTS = ("model", "ticket", "data_dir")
#: What arguments.json has where this library wrote it.
_MARKS_OF_A_RUN = {"model", "task", "method"}


class RunDirectory:
    """The files of one run.

    `metrics.json` is written last: a folder that has it holds a finished run. `SHA256SUMS` has the checksums of a
    finished run's files, as `sha256sum -c` reads them. While a run writes it holds a lock on the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.arguments = self.path / "arguments.json"
        self.checkpoint = self.path / "checkpoint.pt"
        self.gates = self.path / "gates.safetensors"
        self.metrics = self.path / "metrics.json"
        self.model = self.path / "model"
        self.sums = self.path / "SHA256SUMS"
        self.search_plot = self.path / "search.png"
        self.ticket = self.path / "ticket.json"
        self.ticket_plot = self.path / "ticket.png"
        self._lock = FileLock(self.path / ".lock", timeout=0)

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
        if not self.path.is_dir() or not self._entries():
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
        try:
            content = read_json(self.arguments)
        except UsageError:  # torn, by a full disk, say: ours if all the rest is
            return self._entries() <= {self.arguments.name, *(path.name for path in self._outputs)}
        return isinstance(content, dict) and set(content) >= _MARKS_OF_A_RUN

    def _entries(self) -> set[str]:
        """The names in the folder that are neither the lock nor what an interrupted write has left."""
        names = {path.name for path in self.path.iterdir()}
        ours = {self.arguments.name + PARTIAL, *(path.name + PARTIAL for path in self._outputs)}
        return names - {Path(self._lock.lock_file).name} - ours

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

    def start(self, arguments: dict[str, Any], *, resume: bool, overwrite: bool = False) -> None:
        """Locks the folder, which `check` has let pass, and makes it ready.

        Without `resume`, an earlier run is removed.

        Raises:
            OutputExistsError: another process is writing there, or has been since `check`.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise OutputExistsError(f"--output-dir {self.path}: another process is writing here") from None
        self.check(arguments, resume=resume, overwrite=overwrite)
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
            self.sums,
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
        metrics = read_json(self.metrics)
        if not isinstance(metrics, dict) or "method" not in metrics:
            raise UsageError(f"{self.metrics}: expected the metrics of a run, found other JSON")
        return metrics

    @contextmanager
    def released(self) -> Iterator[None]:
        """Gives the lock up at the end, if the run took it."""
        try:
            yield
        finally:
            self._lock.release()

    def finish(self, metrics: dict[str, Any]) -> None:
        """Writes the checksums of all that the run wrote, and its metrics, and removes the checkpoint."""
        content = json_bytes(metrics)
        paths = [self.arguments, self.ticket, self.gates, *sorted(self.model.rglob("*"))]
        sums = {path: sha256(path) for path in paths if path.is_file()}
        sums[self.metrics] = hashlib.sha256(content).hexdigest()
        lines = [f"{digest}  {path.relative_to(self.path).as_posix()}\n" for path, digest in sums.items()]
        write_bytes(self.sums, "".join(lines).encode())
        write_bytes(self.metrics, content)
        self.checkpoint.unlink(missing_ok=True)

    def check_sums(self) -> None:
        """Checks that a finished run's files are those that it wrote.

        Raises:
            MissingFileError: one is gone, or the checksums are.
            UsageError: one is not as it was written.
        """
        if not self.sums.exists():
            raise MissingFileError(f"{self.sums}: no such file; expected the checksums of a finished run")
        for line in self.sums.read_text(encoding="utf-8").splitlines():
            digest, _, name = line.partition("  ")
            path = self.path / name
            if not path.is_file():
                raise MissingFileError(f"{path}: no such file; the run in {self.path} wrote it")
            if sha256(path) != digest:
                raise UsageError(
                    f"{path} is not as the run wrote it (by {self.sums.name}); repeat the run with "
                    "--overwrite-output-dir"
                )

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
        try:
            with replacing(self.checkpoint) as partial, partial.open("wb") as file:
                torch.save(state, file)
        except RuntimeError as error:
            # What went wrong is behind torch's complaint that it could not finish the file.
            if isinstance(cause := error.__context__, OSError):
                raise OSError(cause.errno, cause.strerror, str(self.checkpoint)) from None
            raise

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The checkpoint, if there is one, with tensors on the CPU."""
        if not self.checkpoint.exists():
            return None
        return torch.load(self.checkpoint, map_location="cpu", weights_only=True)
