"""Everything that wants a GPU, by the clock: `bench/gpu.sh first RESULTS`, then `bench/gpu.sh second RESULTS [FIRST]`.

Each command is a few parts with a budget each; what one does not use the next ones have, and nothing runs beyond the
end. Tests run side by side, with everything that the rest compiles compiled beside them; what is timed has the GPU to
itself. Needs torch for CUDA, Triton, transformers, pytest and pytest-benchmark; where `build/gpu/bundle`
(`bench/gpu_bundle.sh`) does not hold a CUDA extension that loads here, also nvcc, pybind11 and ninja to build it.

RESULTS gets, called after the command, `.tar.gz` (logs, rows and steps) and `.json` (what became of each of its jobs),
both written anew after every job, and `.md` (all tables); and `caches.tar.gz`, with which the second command compiles
little on another machine of the kind. The exit status is the number of jobs that failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .gpu_bundle import BUNDLE, CACHES, pack_caches, take_extension, unpack_caches
from .jobs import Job, Runner

ROOT = Path(__file__).parents[1]
#: Seconds that a command takes at most.
LIMITS = {"first": 550, "second": 220}
#: Seconds of each part, by command: with the CUDA extension at hand, and where it is built first.
BUDGETS = {
    "first": (
        {"setup": 60, "launch": 40, "check": 110, "rows": 170, "steps": 145, "report": 25},
        {"setup": 140, "launch": 40, "check": 75, "rows": 165, "steps": 105, "report": 25},
    ),
    "second": (
        {"setup": 25, "again": 75, "steps": 80, "profile": 25, "report": 15},
        {"setup": 120, "again": 20, "steps": 55, "profile": 10, "report": 15},
    ),
}
PYTHON = sys.executable
PYTEST = (PYTHON, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider")
GPU_BACKENDS = ("cuda", "triton")
#: Providers of rows that are kernels of ours; the last is on the CPU, for rehearsals.
OURS = (*GPU_BACKENDS, "cpu")
#: Those of tests/helpers/examples.py, which imports too much for this file, that have kernels for GPUs.
OPS = (
    "attention", "feed_forward", "dropout_add_layer_norm", "feed_forward_sublayer", "attention_sublayer",
    "embedding_layer_norm", "gather_units", "optimizer_step", "masked_lm_loss", "ticket_distance", "ticket_masks",
)  # fmt: skip
#: Half of the time of all.
OPS_OF_ATTENTION = ("attention", "attention_sublayer")
#: Those that tests/ops/test_real_sizes.py knows.
REAL_SIZES = (*OPS[:6], "masked_lm_loss")
#: Rows of the microbenchmarks, a process each: what is wrong with one leaves the others. Of 128 tokens each nothing is
#: padded, so that torch does no more than we do; of SST-2's lengths its packed attention is the one to compare with.
ROWS = {
    "attention-128": ("attention", "--lengths", "128", "--units", "dense", "masked"),
    "attention-sst2-no-dropout": ("attention", "--lengths", "sst2", "--units", "dense", "--dropout", "0"),
    "layer-norm": ("dropout_add_layer_norm", "--lengths", "128", "--modes", "forward", "full"),
    "feed-forward": ("feed_forward", "--lengths", "128", "--units", "dense", "masked"),
    "attention-sublayer": ("attention_sublayer", "--lengths", "128", "--units", "dense", "masked"),
    "adamw": ("optimizer_step", "--units", "dense"),
    "lamb": ("optimizer_step", "--units", "dense"),
    "attention-sst2": ("attention", "--lengths", "sst2", "--units", "dense"),
}
#: Groups of one file, whose names in its rows choose them.
OPTIMIZERS = ("adamw", "lamb")

FULL, SST2 = ("--lengths", "full", "--batch-size", "256"), ("--lengths", "sst2", "--batch-size", "32")
#: 16384 real tokens on average, 157440 with padding.
PADDED = ("--lengths", "sst2", "--padding", "max_length", "--batch-size", "1230")
STEPS = {
    "full": (*FULL, "--variants", "stock", "stock-compile", "stock-unpadded", "stock-unpadded-compile", "converted"),
    "full-captured": (
        *(*FULL, "--variants", "stock", "converted", "search", "ticket-compact"),
        *("converted-captured", "ticket-compact-captured"),
    ),
    "small": (
        *(*SST2, "--variants", "stock", "stock-unpadded-compile", "converted", "ticket-compact"),
        *("converted-captured", "ticket-compact-captured"),
    ),
    "padded": (*PADDED, "--variants", "stock-compile", "stock-unpadded-compile", "converted", "ticket-compact"),
}


@dataclass(frozen=True)
class Part:
    """Some commands that run between the same two points in time, at most `at_once` of them side by side."""

    name: str
    jobs: Callable[[], Sequence[Job]]
    at_once: int = 1


class Session:
    """One of the two commands.

    Args:
        which: `"first"` or `"second"`.
        results: folder for what is kept.
        first: folder with the first command's results.
        rehearse: run on the CPU, at toy sizes, without a limit that counts.
        work: an empty folder for everything else.
    """

    def __init__(self, which: str, results: Path, first: Path, *, rehearse: bool, work: Path) -> None:
        self.which, self.results, self.first, self.rehearse = which, results, first, rehearse
        self.patience = 50 if rehearse else 1
        self.begin = time.monotonic()
        self.cores = 2 if rehearse else len(os.sched_getaffinity(0))
        self.builds = False
        self.mistakes: list[str] = []
        self.runner = Runner(work, results / which, self._env(), ROOT)
        if which == "first":
            jobs = {"launch": self.launches, "check": self.checks, "rows": self.rows, "steps": self.steps}
        else:
            jobs = {"again": self.again, "steps": self.steps, "profile": self.profile}
        jobs = {"setup": self.setup, **jobs, "report": self.reports}
        side_by_side = {"setup": 8, "launch": self.cores, "check": self.cores, "again": self.cores, "report": 2}
        self.parts = [Part(name, make, side_by_side.get(name, 1)) for name, make in jobs.items()]

    def _env(self) -> dict[str, str]:
        commit = BUNDLE / "commit"
        env = dict(os.environ)
        if commit.exists():
            env.setdefault("EARLYBERT_COMMIT", commit.read_text().strip())
        if not self.rehearse:
            env |= {"TRITON_CACHE_DIR": str(CACHES / "triton"), "TORCHINDUCTOR_CACHE_DIR": str(CACHES / "inductor")}
        tools = ["/usr/local/cuda/bin", *map(str, Path("/opt/nvidia/nsight-compute").glob("*"))]
        env["PATH"] = os.pathsep.join([env.get("PATH", os.defpath), *tools])
        return env | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

    def budgets(self) -> dict[str, int]:
        """Seconds of each part."""
        return BUDGETS[self.which][self.builds]

    def run(self) -> int:
        """Runs all parts; returns how many commands failed."""
        if not self.rehearse:
            with self._going_on():
                unpack_caches(self.first / "caches.tar.gz")
            self.builds = True
            with self._going_on():
                self.builds = not take_extension()
        self.runner.extra |= {"command": self.which, "builds": self.builds, "parts": {}}
        end = self.begin
        for part in self.parts:
            end += self.patience * self.budgets()[part.name]
            now = time.monotonic() - self.begin
            print(f"\n== {part.name}: from {now:.0f} s to {end - self.begin:.0f} s at most", flush=True)
            with self._going_on():
                self.runner.run(part.jobs(), end, part.at_once)
            self.runner.extra["parts"][part.name] = [round(now, 1), round(time.monotonic() - self.begin, 1)]
        return self.finish(end)

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """A mistake of this file costs a part, and not what comes after it."""
        try:
            yield
        except Exception as error:
            traceback.print_exc(file=sys.stdout)
            self.mistakes.append(f"{type(error).__name__}: {error}")

    def finish(self, end: float) -> int:
        """Writes what the last part has made, and says what failed."""
        self.runner.keep()
        logs = [self.runner.work / f"{name}.log" for name in ("report", "bounds")]
        tables = "\n".join(log.read_text(errors="replace") for log in logs if log.exists())
        (self.results / f"{self.which}.md").write_text(tables)
        print(tables)
        if self.which == "first" and end - time.monotonic() > 8:
            with self._going_on():
                pack_caches(self.results / "caches.tar.gz")
        failures = [*self.mistakes, *(outcome for outcome in self.runner.outcomes if outcome.failed)]
        for failure in failures:
            print(f"FAILED: {failure}")
        print(f"== done after {time.monotonic() - self.begin:.0f} s, {len(failures)} failures", flush=True)
        return min(len(failures), 100)

    def job(self, name: str, command: Sequence[str], seconds: float, **options: Any) -> Job:
        """A job of `seconds`, or of more where this is a rehearsal."""
        return Job(name, tuple(command), self.patience * seconds, **options)

    def setup(self) -> list[Job]:
        """What the installation has, and everything that is imported later once, from a disk that is still cold."""
        device = "cpu" if self.rehearse else "cuda"
        product = f"import torch; a = torch.ones(256, 256, device={device!r}).bfloat16(); print((a @ a).sum().item())"
        imports = "import earlybert.programs.finetune; from transformers import BertForSequenceClassification"
        jobs = [
            self.job("setup-torch", (PYTHON, "-c", product), 60),
            self.job("setup-transformers", (PYTHON, "-c", imports), 60),
            self.job("setup-env", (PYTHON, "-m", "earlybert_kernels.env"), 60),
            self.job("setup-rows", (*PYTEST, "--collect-only", *self.row_arguments("adamw")), 60),
        ]
        if not self.rehearse:
            jobs.append(self.job("setup-gpu", ("nvidia-smi",), 20))
        if self.builds:
            build = (PYTHON, "setup.py", "build_ext", "--inplace")
            jobs.insert(0, self.job("setup-build", build, 135, env={"EARLYBERT_BUILD_CPU": "0"}))
        return jobs

    def launches(self) -> list[Job]:
        """Each op's example on each backend, a process each: after an error of the GPU a process can do no more."""
        ops, options, env = OPS, (), {"OMP_NUM_THREADS": "1"}
        if self.rehearse:
            ops, options = ("dropout_add_layer_norm",), ("--device", "cpu")
            env |= {"TRITON_INTERPRET": "1", "EARLYBERT_CUDA_EMULATED": "1"}
        return [
            self.job(
                f"launch-{backend}-{op}",
                (PYTHON, "tests/launches.py", backend, "--ops", op, "--dtypes", "bfloat16", *options),
                38,
                env=env,
            )
            for op in ops
            for backend in GPU_BACKENDS
        ]

    def checks(self) -> list[Job]:
        """What later parts compile, sanitizers, real sizes and the other tests of GPU backends; the longest first."""
        env = {"OMP_NUM_THREADS": "2", "TORCHINDUCTOR_COMPILE_THREADS": "2"}
        tests = [*sorted(ROOT.glob("tests/ops/cuda/test_*.py")), *sorted(ROOT.glob("tests/ops/triton/test_*.py"))]
        tests += [*sorted(ROOT.glob("tests/ops/test_*.py")), ROOT / "tests" / "test_optim.py"]
        tests += [ROOT / "tests" / "models" / f"test_{name}.py" for name in ("capture", "packed", "cuda_steps")]
        left_out = {"test_real_sizes.py", "test_interpreter.py"}
        names = [str(path.relative_to(ROOT)) for path in tests if path.name not in left_out]
        sizes = [
            (op, backend)
            for op in REAL_SIZES
            for backend in GPU_BACKENDS
            if (op, backend) != ("masked_lm_loss", "cuda")
        ]
        if self.rehearse:
            names, sizes = ["tests/ops/cuda/test_availability.py"], sizes[:1]
        attention, rest = OPS_OF_ATTENTION, [op for op in OPS if op not in OPS_OF_ATTENTION]
        jobs = self.compilations("full")
        jobs += [
            self.job(
                f"sanitize-{tool}-{name}",
                (PYTHON, "tests/sanitize_gpu.py", "--tools", tool, "--backends", "cuda", "--ops", *ops),
                110,
            )
            for tool in ("memcheck", "racecheck")
            for name, ops in (("attention", attention), ("rest", rest))
        ]
        for op, backend in sizes:
            chosen = f"[{op}-{backend}-" + (f" or (drops and [{backend}-)" if op == "attention" else "")
            # dtype0 is float32, for which Triton compiles as long as for bfloat16.
            for name, dtype in {"": " and not dtype0", "-float32": " and dtype0"}.items():
                command = (*PYTEST, "tests/ops/test_real_sizes.py", "-k", f"({chosen}){dtype}")
                jobs.append(self.job(f"sizes-{op}-{backend}{name}", command, 100, env=env, none_is_fine=self.rehearse))
        for group in ROWS if not self.rehearse else ():
            if group not in OPTIMIZERS:  # which torch.compile has none of
                command = (*self.row_arguments(group, "dense and compile"), "--rounds", "1")
                jobs.append(self.job(f"compile-{group}", (*PYTEST, *command), 110, env=env))
        for name in names:
            options = () if "/cuda/" in name or "/triton/" in name or "/models/" in name else ("-k", "triton or cuda")
            slug = name.removeprefix("tests/").removesuffix(".py").replace("/", "-")
            command = (*PYTEST, "-rfE", "--maxfail=20", name, *options)
            jobs.append(self.job(f"tests-{slug}", command, 100, env=env, none_is_fine=True))
        return jobs

    def compilations(self, *steps: str) -> list[Job]:
        """A round of each: what it compiles is found in caches when it is timed."""
        env = {"OMP_NUM_THREADS": "2"}
        return [self.job(f"compile-{name}", self.step_command(name, 1), 110, env=env) for name in steps]

    def rows(self) -> list[Job]:
        """A file of rows each, without backends whose launch has failed."""
        return [
            self.job(
                f"rows-{group}",
                (
                    *PYTEST,
                    "--benchmark-quiet",
                    *self.row_arguments(group, self._chosen(group)),
                    "--rounds",
                    self._rounds(),
                    "--rows-json",
                    "{work}/{name}.json",
                ),
                45,
            )
            for group in ROWS
        ]

    def _rounds(self) -> str:
        return "2" if self.rehearse else "20"

    def _chosen(self, group: str) -> str:
        """Of all units every way to compute an op, of some of them the backends; for `-k`."""
        op = ROWS[group][0]
        failed = {outcome.job.name: outcome.failed for outcome in self.runner.outcomes}
        # What did not launch in time, and was right later, had to be compiled first.
        broken = [b for b in GPU_BACKENDS if failed.get(f"launch-{b}-{op}") and failed.get(f"sizes-{op}-{b}", True)]
        chosen = "(dense or not (compile or reference))" if not self.rehearse else "not compile"
        own = [group] if group in OPTIMIZERS else []
        return " and ".join([*own, chosen, *(f"not -{backend}]" for backend in broken)])

    def row_arguments(self, group: str, chosen: str | None = None) -> tuple[str, ...]:
        """Arguments of pytest for a group of rows, or for those that `-k` has to choose."""
        name, *options = ROWS[group]
        sizes = ("--sizes", "base", "--dtype", "bfloat16", "--tokens", "16384")
        if self.rehearse:
            sizes = ("--sizes", "tiny", "--dtype", "float32", "--tokens", "64")
        select = () if chosen is None else ("-k", chosen)
        return (f"bench/ops/bench_{name}.py", *sizes, *options, *select)

    def step_command(self, name: str, rounds: int) -> tuple[str, ...]:
        """`bench.step` of a kind of step."""
        words = ["--shape", "base", "--dtype", "bfloat16", *STEPS[name]]
        if self.rehearse:
            words = [word for word in ("--shape", "tiny", *STEPS[name]) if not word.endswith("compile")]
            words[words.index("--batch-size") + 1] = "4"
        return (PYTHON, "-m", "bench.step", *words, "--rounds", str(rounds))

    def steps(self) -> list[Job]:
        """Whole steps, with the GPU idle otherwise."""
        names = ("full", "full-captured") if self.which == "first" else ("small", "padded")
        rounds, seconds = 2 if self.rehearse else 20, 72 if self.which == "first" else 40
        output = ("--output", "{work}/{name}.json")
        return [self.job(f"step-{name}", (*self.step_command(name, rounds), *output), seconds) for name in names]

    def again(self) -> list[Job]:
        """What failed in the first command, each launch waited for; beside it what the steps compile."""
        jobs = self.compilations("small", "padded")
        # What was not begun comes last.
        for each in sorted(read_state(self.first).get("jobs", []), key=lambda each: each["status"] is None):
            own = each["job"]
            if each["failed"] and not own["name"].startswith(("setup", "compile", "report", "bounds")):
                env = {**own["env"], "CUDA_LAUNCH_BLOCKING": "1"}
                jobs.append(self.job(f"again-{own['name']}", (PYTHON, *own["command"][1:]), 60, env=env))
        return jobs

    def profile(self) -> list[Job]:
        """Of our kernels that the first command timed, the one furthest below the roofline, under ncu."""
        worst = read_state(self.first).get("worst")
        if worst is None:
            print("nothing to profile: the first command has no row of our kernels")
            return []
        tool = ("ncu", "--profile-from-start", "off", "--clock-control", "none", "--set", "full")
        file, *options = self.row_arguments(worst["group"])
        command = (*PYTEST, "-rs", "--profile", f"{file}::{worst['name']}", *options)
        return [self.job("profile", command if self.rehearse else (*tool, *command), 60)]

    def reports(self) -> list[Job]:
        """All tables."""
        self.runner.extra["worst"] = worst_row(self.runner.work)
        found = [
            str(path) for path in sorted(self.runner.work.glob("*.json")) if path.name.startswith(("rows-", "step-"))
        ]
        if not found:
            return []
        modules = {"report": "bench.report", "bounds": "bench.report.bounds"}
        return [self.job(name, (PYTHON, "-m", module, *found), 20) for name, module in modules.items()]


def worst_row(work: Path) -> dict[str, str] | None:
    """Group and name of the row of a kernel of ours, all units and both directions, furthest below the roofline."""
    rows = []
    for path in sorted(work.glob("rows-*.json")):
        for row in json.loads(path.read_text())["benchmarks"]:
            own = row["extra_info"]
            if own["provider"] in OURS and (own["unit"], own["mode"]) == ("dense", "full"):
                rows.append((own["floor_share"], path.stem.removeprefix("rows-"), row["name"]))
    if not rows:
        return None
    _, group, name = min(rows)
    return {"group": group, "name": name}


def read_state(folder: Path) -> dict[str, Any]:
    """What the first command has left of itself, or nothing."""
    path = folder / "first.json"
    return json.loads(path.read_text()) if path.exists() else {}


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments, runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=tuple(LIMITS))
    parser.add_argument("results", type=Path, metavar="RESULTS")
    parser.add_argument("first", type=Path, nargs="?", metavar="FIRST", help="results of `first`; default: RESULTS")
    args = parser.parse_args(argv)
    rehearse = os.environ.get("REHEARSE", "0") == "1"
    args.results.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that what runs is ended
    with tempfile.TemporaryDirectory() as work:
        session = Session(args.command, args.results, args.first or args.results, rehearse=rehearse, work=Path(work))
        try:
            return session.run()
        finally:
            session.runner.stop()


if __name__ == "__main__":
    sys.exit(main())
