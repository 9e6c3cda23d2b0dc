"""When a training loop is saved, and what has to be as it was for a run to be continued from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from .. import processes
from ..errors import Interrupted, UsageError
from ..run_directory import RunDirectory
from .interrupt import InterruptRequest
from .loop import TrainingLoop
from .ragged import Ragged


class Checkpoints:
    """Saves a run's loops to its folder: every so many steps, at the end of a stage, and when the user interrupts."""

    def __init__(
        self,
        directory: RunDirectory,
        interrupt: InterruptRequest,
        every: int,
        *,
        inputs: Mapping[str, str],
        environment: Mapping[str, Any],
    ) -> None:
        """
        Args:
            directory: the run's.
            interrupt: whether the user asked to stop.
            every: optimizer steps between two checkpoints; 0 for none in between.
            inputs: fingerprints of all that the run has read, by what it is. A run is only continued with the same.
            environment: what the run computes with, as far as results may depend on it. A run may be continued with
                another, but its results are then of both.
        """
        self._directory = directory
        self._interrupt = interrupt
        self._every = every
        self._inputs = dict(inputs)
        self._environments = [dict(environment)]

    def load(self) -> dict[str, Any] | None:
        """The run's checkpoint, if there is one.

        Raises:
            UsageError: it is torn or of another run, or what the run reads is no longer what it was; or of several
                processes, perhaps on several machines, one reads something else.
        """
        with processes.together():
            checkpoint = self._load()
        place = None if checkpoint is None else [checkpoint["stage"], checkpoint["loop"]["step"]]
        if found := processes.differing({**self._inputs, f"the checkpoint in {self._directory.path}": place}):
            raise UsageError(f"{' and '.join(found)} differ between processes; all have to read the same files")
        return checkpoint

    def _load(self) -> dict[str, Any] | None:
        checkpoint = self._directory.load_checkpoint()
        if checkpoint is None:
            return None
        changed = [what for what, digest in self._inputs.items() if checkpoint["inputs"].get(what) != digest]
        if changed:
            raise UsageError(
                f"--resume: {' and '.join(changed)} of the run in {self._directory.path} are not those that it was "
                "started with, though in the same place; put the files back, or begin anew with --overwrite-output-dir"
            )
        earlier = [known for known in checkpoint["environments"] if known not in self._environments]
        self._environments = [*earlier, *self._environments]
        return checkpoint

    def warnings(self) -> list[str]:
        """A sentence for every environment that an earlier part of the run was computed in and that differs."""
        now = dict(_flat(self._environments[-1]))
        sentences = []
        for earlier in self._environments[:-1]:
            was = dict(_flat(earlier))
            differing = sorted(name for name in {*was, *now} if was.get(name) != now.get(name))
            listed = ", ".join(f"{name} {was.get(name)} and now {now.get(name)}" for name in differing)
            sentences.append(f"the run was continued in another environment: {listed}; seconds and results are of both")
        return sentences

    def save(self, loop: TrainingLoop, extra: dict[str, Any]) -> None:
        """Writes a checkpoint, which is the loop's state and what else the run has to remember.

        Of several processes all have to call this, and the first writes.
        """
        bound = {"inputs": self._inputs, "environments": self._environments}
        state = {**extra, **bound, "loop": loop.state_dict()}
        processes.on_first(lambda: self._directory.save_checkpoint(state))

    def after_step(self, loop: TrainingLoop, extra: Callable[[], dict[str, Any]]) -> None:
        """Saves if it is time to, off the loop's clock.

        Raises:
            Interrupted: the user asked for it, in one process or all; there is a checkpoint then.
        """
        is_interrupted = processes.total(self._interrupt.made) > 0
        if is_interrupted or (self._every and loop.step % self._every == 0):
            with loop.watch.paused():
                self.save(loop, extra())
        if is_interrupted:
            raise Interrupted(
                f"{self._directory.path}: interrupted in stage {loop.settings.name} after {loop.step} of "
                f"{loop.settings.max_steps} steps, with a checkpoint to resume from"
            )


def fingerprint(*values: Any) -> str:
    """One SHA-256 of values: tensors on the CPU, what JSON can write, and lists and dicts of them."""
    digest = hashlib.sha256()
    for value in values:
        _add(digest, value)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if torch.is_tensor(value):
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        for name, each in sorted(value.items()):
            digest.update(f"{name}:".encode())
            _add(digest, each)
    elif isinstance(value, Ragged):
        _add(digest, torch.from_numpy(value.lengths))
        for array in value.arrays():
            digest.update(np.ascontiguousarray(array, np.int64))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for each in value:
            _add(digest, each)
    else:
        digest.update(json.dumps(value, default=str).encode())


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", value
