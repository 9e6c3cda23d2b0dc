"""The folder of a run: what is in it, and how it is written so that nothing is ever half there."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from earlybert_kernels import Ticket

from .arguments import FinetuneArguments, PretrainArguments, defaults
from .errors import MissingFileError, OutputExistsError, UsageError
from .files import PARTIAL, check_replaceable, json_bytes, read_json, remove, replacing, sha256, write_bytes, write_json

logger = logging.getLogger(__name__)

#: Arguments that do not change a run's result, and may differ when it is resumed.
FREE_ARGUMENTS = ("output_dir", "resume", "overwrite_output_dir", "checkpoint_steps", "report_to")
#: Arguments that may be paths of what a run reads.
INPUTS = (
    "model", "ticket", "search_from", "dataset_name", "data_dir", "train_file", "validation_file", "test_file",
    "config_name", "tokenizer",
)  # fmt: skip
#: What arguments.json has where this library wrote it.
_MARKS_OF_A_RUN = {"model", "method"}
#: What metrics.json has where this library wrote it.
_MARKS_OF_METRICS = {"method", "search", "ticket"}
#: What to do where a run cannot be continued.
_ANEW = "the run can only be begun anew, with --overwrite-output-dir in place of --resume"
#: A line of SHA256SUMS: the checksum, and the path within the folder.
_SUM = re.compile(r"([0-9a-f]{64})  (.+)")


def check_output(path: Path, *, overwrite: bool) -> Path:
    """Checks that a command may write a file, and gives the path to write to.

    Raises:
        MissingFileError: there is no folder for it.
        OutputExistsError: there is something that is not to be replaced.
    """
    path = check_replaceable(path)
    if not path.parent.is_dir():
        raise MissingFileError(f"{path}: cannot be written there: {path.parent} is no folder")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path}: there is such a file; give another path, or --overwrite to replace it")
    if RunDirectory(path.parent).owns(path):
        raise OutputExistsError(f"{path}: a file of the run in {path.parent}; give another path")
    return path


class RunDirectory:
    """The files of one run.

    `metrics.json` is written last: a folder that has it holds a finished run. `SHA256SUMS` has the checksums of a
    finished run's files, as `sha256sum -c` reads them. While a run writes it holds a lock on the folder, and its
    checkpoints have its arguments, so that those of another run are not taken for its own.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.arguments = self.path / "arguments.json"
        self.checkpoint = self.path / "checkpoint.pt"
        self.gates = self.path / "gates.safetensors"
        names = (
            "predictions.json", "nbest_predictions.json", "null_odds.json",
            "test_predictions.jsonl", "test_predictions.tsv", "test_predictions_mismatched.tsv",
        )  # fmt: skip
        self.predictions = tuple(self.path / name for name in names)
        self.curve_plot = self.path / "curve.png"
        self.metrics = self.path / "metrics.json"
        self.report = self.path / "report.html"
        self.model = self.path / "model"
        self.sums = self.path / "SHA256SUMS"
        self.scores = self.path / "scores.safetensors"
        self.searched = self.path / "searched.pt"
        self.search_plot = self.path / "search.png"
        self.tensorboard = self.path / "runs"
        self.ticket = self.path / "ticket.json"
        self.ticket_plot = self.path / "ticket.png"
        self._lock = FileLock(self.path / ".lock", timeout=0)
        self._started: dict[str, Any] = {}

    def check(self, arguments: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Checks, without writing, that a run with these arguments may use the folder.

        Raises:
            OutputExistsError: the folder holds a run and neither `resume` nor `overwrite` is given, it holds
                something else, or another process is writing there.
            UsageError: nothing can be written there; `resume` is given and the folder holds a run with other
                arguments; or `overwrite` is given and would remove what the run is to read.
        """
        there = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not there.is_dir():
            found = "" if there == self.path else f" at {there}"
            raise OutputExistsError(f"--output-dir {self.path}: expected a folder, found a file{found}")
        if not os.access(there, os.W_OK | os.X_OK):
            raise UsageError(f"--output-dir {self.path}: nothing can be written to {there}; give another folder")
        if not self.path.is_dir() or not self._entries():
            return
        if not self._holds_run():
            raise OutputExistsError(
                f"--output-dir {self.path} holds other files, which are no run's; give another folder, or an empty one"
            )
        if not self.is_finished and Path(self._lock.lock_file).exists():
            self._take_lock()
            self._lock.release()  # `start` holds it once more
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

    def owns(self, path: Path) -> bool:
        """Whether a file is one that the run in this folder has written, or is to write."""
        return path in (self.arguments, *self._outputs) and self._holds_run()

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
        for name in INPUTS:
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
        try:
            before = _binding(read_json(self.arguments))
        except UsageError as error:  # torn
            raise UsageError(f"{error}; {_ANEW}") from None
        arguments = _binding(arguments)
        # An earlier version did what is the default of an argument that it did not have.
        usual = defaults(FinetuneArguments if "task" in arguments else PretrainArguments)
        before = {name: value for name, value in usual.items() if name in arguments} | before
        for name in sorted(set(before) | set(arguments)):
            if before.get(name) != arguments.get(name):
                raise UsageError(
                    f"--resume: the run in {self.path} was started with --{name.replace('_', '-')} "
                    f"{before.get(name)}, and is now given {arguments.get(name)}; a run can only be "
                    "continued with the arguments that it was started with; begin anew with --overwrite-output-dir, or "
                    "in another folder"
                )

    def start(self, arguments: dict[str, Any], *, resume: bool, overwrite: bool = False) -> None:
        """Locks the folder, which `check` has let pass, and makes it ready.

        Without `resume`, an earlier run is removed. With it, one that another process has finished since `check`
        stays as it is.

        Raises:
            OutputExistsError: another process is writing there, or has been since `check`.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        self.check(arguments, resume=resume, overwrite=overwrite)
        self._started = _binding(arguments)
        if resume and self.is_finished:
            return
        if not resume:
            for path in self._outputs:
                remove(path)
        write_json(self.arguments, arguments)

    def join(self, arguments: dict[str, Any]) -> None:
        """Takes part in the run that another process has made the folder ready for, and writes nothing."""
        self._started = _binding(arguments)

    def _take_lock(self) -> None:
        try:
            self._lock.acquire()
        except Timeout:
            raise OutputExistsError(f"--output-dir {self.path}: another process is writing here") from None

    @property
    def _outputs(self) -> tuple[Path, ...]:
        """What a run writes and `start` removes, in this order: without metrics.json no run passes for finished."""
        return (
            self.metrics,
            self.sums,
            self.checkpoint,
            self.gates,
            self.scores,
            self.searched,
            *self.predictions,
            self.ticket,
            self.curve_plot,
            self.search_plot,
            self.ticket_plot,
            self.report,
            self.model,
            self.tensorboard,
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
        if not isinstance(metrics, dict) or not set(metrics) >= _MARKS_OF_METRICS:
            raise UsageError(f"{self.metrics}: expected the metrics of a run, found other JSON")
        return metrics

    def read_finished(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """What the run wrote, once all its files are found to be as it wrote them, and those it read as it read them.

        Args:
            arguments: the run's.

        Raises:
            UsageError: as `check_sums` and `read_metrics` do; or a file that the arguments name is another now.
        """
        self.check_sums()
        self.checkpoint.unlink(missing_ok=True)  # of a process that ended before it could
        metrics = self.read_metrics()
        now = input_sums(arguments)
        for name, digest in metrics.get("inputs", {}).items():  # which runs of earlier versions do not have
            if now.get(name) != digest:
                raise UsageError(
                    f"--{name.replace('_', '-')} {arguments.get(name)} is not as the finished run in {self.path} has "
                    "read it; put the file back, or repeat the run with --overwrite-output-dir"
                )
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
        paths = [
            self.arguments,
            self.ticket,
            self.gates,
            self.scores,
            self.searched,
            *self.predictions,
            *sorted(self.model.rglob("*")),
        ]
        sums = {path: sha256(path) for path in paths if path.is_file()}
        sums[self.metrics] = hashlib.sha256(content).hexdigest()
        lines = [f"{digest}  {path.relative_to(self.path).as_posix()}\n" for path, digest in sums.items()]
        write_bytes(self.sums, "".join(lines).encode())
        write_bytes(self.metrics, content)
        self.checkpoint.unlink(missing_ok=True)

    def check_sums(self, *only: Path) -> None:
        """Checks that a finished run's files are those that it wrote.

        Args:
            only: those of its files to look at, where not all of them matter.

        Raises:
            MissingFileError: one is gone, or the checksums are.
            UsageError: one is not as it was written, or the checksums are not whole.
        """
        if not self.sums.exists():
            raise MissingFileError(
                f"{self.sums}: no such file; without the checksums of a finished run, which those of earlier versions "
                "do not have, its files cannot be checked; repeat the run with --overwrite-output-dir"
            )
        sums = self._read_sums()
        for path in only or sums:
            if not path.is_file():
                raise MissingFileError(f"{path}: no such file; the run in {self.path} wrote it")
            if sha256(path) != sums.get(path):
                raise UsageError(
                    f"{path} is not as the run wrote it (by {self.sums.name}); repeat the run with "
                    "--overwrite-output-dir"
                )

    def check_read(self, *paths: Path) -> None:
        """Checks what a command is to read of the folder, as far as checksums of it were written.

        Raises:
            UsageError: as `check_sums`.
        """
        if not self.is_finished:
            return
        if self.sums.exists():
            self.check_sums(*paths)
        else:
            logger.warning("%s has no %s: its files are taken as they are", self.path, self.sums.name)

    def _read_sums(self) -> dict[Path, str]:
        """By path, what SHA256SUMS says."""
        lines = self.sums.read_bytes().decode(errors="replace").splitlines()
        found = [_SUM.fullmatch(line) for line in lines]
        sums = {self.path / match[2]: match[1] for match in found if match}
        if not all(found) or self.metrics not in sums:  # which is the last: without it the end is missing
            raise UsageError(
                f"{self.sums}: expected the checksums of a finished run, found only a part, or something else; repeat "
                "the run with --overwrite-output-dir"
            )
        return sums

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
                torch.save({**state, "arguments": self._started}, file)
        except RuntimeError as error:
            # What went wrong is behind torch's complaint that it could not finish the file.
            if isinstance(cause := error.__context__, OSError):
                raise OSError(cause.errno, cause.strerror, str(self.checkpoint)) from None
            raise

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The checkpoint of the run that was started, if there is one, with tensors on the CPU.

        Raises:
            UsageError: the file is not whole, or the checkpoint of another run.
        """
        if not self.checkpoint.exists():
            return None
        try:
            with zipfile.ZipFile(self.checkpoint) as file:  # as torch writes them, with checksums that it does not read
                torn = file.testzip() is not None
        except (zipfile.BadZipFile, EOFError):
            torn = True
        if torn:
            raise UsageError(f"{self.checkpoint} is torn, or no checkpoint; {_ANEW}")
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or state.get("arguments") != self._started:
            raise UsageError(f"{self.checkpoint} is the checkpoint of another run, or of another version; {_ANEW}")
        return state


def input_sums(arguments: dict[str, Any]) -> dict[str, str]:
    """The checksums of the files (not of folders) that a run's arguments name, by the argument."""
    given = {name: Path(value) for name in INPUTS if (value := arguments.get(name)) is not None}
    return {name: sha256(path) for name, path in given.items() if path.is_file()}


def _binding(arguments: dict[str, Any]) -> dict[str, Any]:
    """Those arguments that a run cannot be continued without."""
    return {name: value for name, value in arguments.items() if name not in FREE_ARGUMENTS}
