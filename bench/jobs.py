"""Commands with a limit each and an end for all, one after the other or side by side; what is done is kept at once.

Of Python's standard library alone: whatever is wrong with the rest of an installation, this runs.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: What a command has after SIGINT, in which pytest still writes its summary, before it is killed.
GRACE = 5.0
#: A command is not begun with less than this.
_LEAST = 3.0
#: Bytes of a log that are kept: the first half of them and the last.
_LOG = 2**20


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        name: of its log, and what `{name}` in the command becomes.
        command: its words; `{work}` becomes the folder that it may write to.
        seconds: that it may take, `GRACE` included.
        env: what its environment has beyond that of all.
        none_is_fine: whether pytest may find no test.
    """

    name: str
    command: Sequence[str]
    seconds: float
    env: Mapping[str, str] = field(default_factory=dict)
    none_is_fine: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a job: its exit status, or None where it was not begun, and how long it took."""

    job: Job
    status: int | None
    seconds: float
    timed_out: bool = False

    @property
    def failed(self) -> bool:
        """Whether it did not do what it was to do."""
        return self.status not in ((0, 5) if self.job.none_is_fine else (0,))  # 5: pytest has run nothing

    def __str__(self) -> str:
        if self.status is None:
            return f"{self.job.name}: not begun, no time was left"
        late = ", out of time" if self.timed_out else ""
        return f"{self.job.name}: {'FAILED' if self.failed else 'done'}, {self.seconds:.1f} s, exit {self.status}{late}"


class Runner:
    """Runs jobs, and keeps all that they have written in a few files.

    Args:
        work: folder for logs and for what the jobs write.
        results: where it is kept, but for endings: `.tar.gz` holds the files of `work` (not of folders in it), `.json`
            says what became of each job. Both are written anew after every job.
        env: the environment of all jobs.
        root: the folder that commands run in.
    """

    def __init__(self, work: Path, results: Path, env: Mapping[str, str], root: Path) -> None:
        self.work, self.results, self.env, self.root = work, results, dict(env), root
        self.outcomes: list[Outcome] = []
        self.extra: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen] = set()
        self._stopped = False

    def run(self, jobs: Iterable[Job], end: float, at_once: int = 1) -> list[Outcome]:
        """Begins jobs in their order, at most `at_once` side by side; none runs beyond `end`, by `time.monotonic`."""
        # A signal that this process ignores its children would ignore too: a shell's background jobs ignore SIGINT.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with ThreadPoolExecutor(at_once) as pool:
            try:
                return list(pool.map(lambda job: self._run(job, end), jobs))
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Ends what runs, and lets nothing begin."""
        self._stopped = True
        for process in list(self._running):
            _signal(process, signal.SIGKILL)

    def keep(self) -> None:
        """Writes the results anew; a reader finds the old ones or the new ones."""
        state = {"jobs": [{**asdict(each), "failed": each.failed} for each in self.outcomes], **self.extra}
        _replace(self.results.with_suffix(".json"), lambda path: path.write_text(json.dumps(state, indent=1)))
        _replace(self.results.with_suffix(".tar.gz"), self._tar)

    def _tar(self, path: Path) -> None:
        with tarfile.open(path, "w:gz", compresslevel=3) as tar:
            for each in sorted(path for path in self.work.iterdir() if path.is_file()):
                # Other jobs are writing: a file may be gone by now, or about to be shorter than it was.
                with contextlib.suppress(FileNotFoundError):
                    content = each.read_bytes()
                    entry = tarfile.TarInfo(each.name)
                    entry.size, entry.mtime = len(content), int(time.time())
                    tar.addfile(entry, io.BytesIO(content))

    def _run(self, job: Job, end: float) -> Outcome:
        begin = time.monotonic()
        until = min(end, begin + job.seconds)
        if self._stopped or until - begin < _LEAST:
            return self._done(Outcome(job, None, 0.0))
        log = self.work / f"{job.name}.log"
        command = [word.replace("{work}", str(self.work)).replace("{name}", job.name) for word in job.command]
        with log.open("wb") as file:
            try:
                process = subprocess.Popen(
                    command,
                    cwd=self.root,
                    env={**self.env, **job.env},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                file.write(f"{error}\n".encode())
                process = None
        if process is None:
            return self._done(Outcome(job, 127, 0.0))
        self._running.add(process)
        timed_out = _wait(process, until)
        self._running.discard(process)
        _shorten(log)
        return self._done(Outcome(job, process.returncode, round(time.monotonic() - begin, 2), timed_out))

    def _done(self, outcome: Outcome) -> Outcome:
        with self._lock:
            self.outcomes.append(outcome)
            print(f"== {outcome}", flush=True)
            log = self.work / f"{outcome.job.name}.log"
            if outcome.failed and log.exists():
                print("\n".join(line[:300] for line in log.read_text(errors="replace").splitlines()[-12:]), flush=True)
            try:
                self.keep()
            except OSError as error:  # the next may be kept again, and the last is
                print(f"the results could not be kept: {error}", flush=True)
        return outcome


def _wait(process: subprocess.Popen, until: float) -> bool:
    """Until a process and all that it has begun are done; whether they had to be ended."""
    try:
        process.wait(max(0.0, until - GRACE - time.monotonic()))
        timed_out = False
    except subprocess.TimeoutExpired:
        timed_out = True
        # To the process alone: pytest is to end its test, and not to see its compilers die. Not SIGTERM, by which
        # Python ends without another word.
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, until - time.monotonic()))
    _signal(process, signal.SIGKILL)  # what it has left behind would be timed with the next
    process.wait()
    return timed_out


def _signal(process: subprocess.Popen, number: signal.Signals) -> None:
    """To all of a job's processes; its session has the number of the first, which may be done."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _shorten(log: Path) -> None:
    if log.stat().st_size > _LOG:
        content = log.read_bytes()
        log.write_bytes(content[: _LOG // 2] + b"\n...\n" + content[-_LOG // 2 :])


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    new = path.with_name(path.name + ".new")
    write(new)
    os.replace(new, path)
