"""Processes as torchrun starts them, without the seconds that each takes to import torch and transformers.

One process has imported them and does nothing else: those that train are its forks, and it has no threads that a fork
would lose, as that of the tests has.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PRELOADED = [
    "transformers.trainer", "accelerate", "sklearn.metrics", "scipy.stats", "earlybert.programs.plots",
    "tests.helpers.many_processes", "tests.helpers.program_processes",
]  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """A process that has ended: its exit status, negative for a signal's number, and what it has written."""

    status: int | None
    output: str


def start(count: int, call: Callable[..., None], *arguments: Any, timeout: float = 500) -> list[Ended]:
    """Calls a function in several processes that know each other as torchrun's do.

    Args:
        count: of processes.
        call: of a module.
        arguments: of the call; they are pickled.
        timeout: seconds after which all are killed.

    Returns:
        By rank, how each has ended, once all have.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as free, TemporaryDirectory() as folder:
        free.bind(("localhost", 0))
        known = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
        known |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
        free.close()
        started = []
        for rank in range(count):
            environment = {**os.environ, **known, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            output = Path(folder, str(rank))
            started.append((context.Process(target=_run, args=(output, environment, call, arguments)), output))
        for process, _ in started:
            process.start()
        for process, _ in started:
            process.join(timeout)
            if process.is_alive():
                process.kill()
                process.join()
        return [Ended(process.exitcode, output.read_text(encoding="utf-8")) for process, output in started]


def torchrun(count: int, call: Callable[..., None], *arguments: Any, restarts: int = 0) -> Ended:
    """What `torchrun --standalone --nproc-per-node COUNT --max-restarts RESTARTS` does, with a function as program.

    Returns:
        How torchrun has ended, and what it and its processes have written.
    """
    return start(1, _be_agent, count, restarts, call, arguments)[0]


def run_program(path: Path, *arguments: str) -> None:
    """Runs a file as Python does that is given its name."""
    sys.argv = [str(path), *arguments]
    runpy.run_path(str(path), run_name="__main__")


def _be_agent(count: int, restarts: int, call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with TemporaryDirectory() as logs:
        config = LaunchConfig(
            1, 1, count, run_id="tests", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=restarts,
            start_method="fork", logs_specs=DefaultLogsSpecs(logs, redirects=Std.ALL),
        )  # fmt: skip
        try:
            elastic_launch(config, call)(*arguments)
        finally:
            for written in sorted(Path(logs).rglob("std*.log")):
                print(written.read_text(encoding="utf-8"))


def _run(output: Path, environment: dict[str, str], call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    import torch

    with open(output, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # pytest's are of its own process
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        call(*arguments)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
