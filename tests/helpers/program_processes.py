"""Commands of the command line in two processes, one of which can be made to end early.

Each process writes what it has seen to FOLDER/NAME-RANK.json.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from earlybert import cli
from earlybert.launcher import attempt, launched_rank
from earlybert.training.loop import TrainingLoop
from tests.helpers import forked
from tests.helpers.forked import Ended


@dataclass
class Command:
    """What the processes do, one after another.

    Attributes:
        name: of what they write about it.
        argv: the arguments of `earlybert`.
        stage, step, rank, signal: where one of them gets a signal, if it does: behind so many steps of a stage.
    """

    name: str
    argv: list[str]
    stage: str = ""
    step: int = 0
    rank: int = 0
    signal: int = 0

    @property
    def output(self) -> str:
        """Where it writes."""
        return self.argv[self.argv.index("--output-dir") + 1]


@dataclass
class Seen:
    """What a process has seen of a command.

    Attributes:
        status: how it ended.
        said: what it wrote to stderr.
        written: files and folders that Python opened to write, or made, in the output folder.
        random: by training step, what the generator of dropout would have drawn before it.
        tokens: of its batches, by step and then by batch.
    """

    status: int
    said: str
    written: list[str]
    random: list[int]
    tokens: list[list[int]]


def launch(folder: Path, *commands: Command) -> list[Ended]:
    """Runs commands in processes of their own."""
    return forked.start(2, run, folder, commands)


def launch_again(folder: Path, command: Command) -> Ended:
    """Runs a command by torchrun, which starts both processes anew when one of them ends.

    None gets a signal then, and what there was of the output folder is kept in FOLDER/NAME.
    """
    return forked.torchrun(2, _run_once_more, folder, command, restarts=1)


def seen_by(folder: Path, name: str) -> list[Seen]:
    """What each process has seen of a command."""
    return [Seen(**json.loads((folder / f"{name}-{rank}.json").read_text())) for rank in range(2)]


class _Watch:
    """Looks on while a command runs."""

    def __init__(self) -> None:
        self.command: Command | None = None
        self.written: list[str] = []
        self.random: list[int] = []
        self.tokens: list[list[int]] = []
        self._step = TrainingLoop._train_step
        sys.addaudithook(self._audit)
        TrainingLoop._train_step = lambda loop, batches: self._train_step(loop, batches)  # type: ignore[method-assign]

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if self.command is None:
            return
        wrote = event in ("os.mkdir", "os.rename", "os.remove") or (event == "open" and args[2] & os.O_ACCMODE)
        if wrote and str(args[0]).startswith(self.command.output):
            self.written.append(f"{event} {args[0]}")

    def _train_step(self, loop: TrainingLoop, batches: list[list[int]]) -> None:
        with torch.random.fork_rng():
            self.random.append(int(torch.randint(2**31, ())))
        make, tokens = loop._batches.make, []

        def making(indices: list[int]) -> Any:
            tokens.append(sum(loop._batches.lengths(indices)))
            return make(indices)

        loop._batches.make = making  # type: ignore[method-assign]
        self._step(loop, batches)
        loop._batches.make = make  # type: ignore[method-assign]
        self.tokens.append(tokens)
        assert self.command is not None
        at = (self.command.stage, self.command.step, self.command.rank)
        if self.command.signal and at == (loop.settings.name, loop.step + 1, int(os.environ["RANK"])):
            os.kill(os.getpid(), self.command.signal)


def run(folder: Path, commands: Sequence[Command]) -> None:
    """What each of them does."""
    if len(commands) > 1:  # else the command makes the group itself
        dist.init_process_group("gloo")
    watch = _Watch()
    for command in commands:
        watch.command, watch.written, watch.random, watch.tokens = command, [], [], []
        said = io.StringIO()
        logging.getLogger().handlers.clear()  # the last command's, which writes to where stderr was then
        with contextlib.redirect_stderr(said) if len(commands) > 1 else contextlib.nullcontext():
            status = cli.main(command.argv)
        seen = Seen(status, said.getvalue(), watch.written, watch.random, watch.tokens)
        watch.command = None
        (folder / f"{command.name}-{os.environ['RANK']}.json").write_text(json.dumps(asdict(seen)))
    if len(commands) > 1:
        dist.destroy_process_group()
    elif status:
        sys.exit(status)


def _run_once_more(folder: Path, command: Command) -> None:
    if attempt() > 0:
        command.signal = 0
        if launched_rank() == 0:
            shutil.copytree(command.output, folder / command.name)
        time.sleep(launched_rank())  # the first is to look for the others before they are there
    run(folder, [command])
