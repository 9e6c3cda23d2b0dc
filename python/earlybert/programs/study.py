"""A grid of settings, tasks and seeds: what several arms share is run once, what is finished is never repeated."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..arguments import FinetuneArguments, defaults
from ..errors import UsageError
from ..files import write_bytes, write_json
from ..launcher import check_alone
from ..run_directory import FREE_ARGUMENTS, RunDirectory
from ..search.search import CHOICE, RULE
from ..tasks import get_task
from .summary import markdown, record, tables

logger = logging.getLogger(__name__)

#: Arguments that say how a ticket is drawn and trained: what a search does not depend on.
_OF_TICKETS = (
    *RULE, "target_speedup", "target_parameters", "score", "ticket_weights", "distillation",
    "distillation_temperature", "distillation_hidden_states", "num_train_epochs", "ticket_epochs", "max_steps",
    "learning_rate", "lr_scheduler_type", "warmup_ratio", "warmup_steps",
    "eval_strategy", "eval_steps", "load_best_model_at_end", "metric_for_best_model", "early_stopping_patience",
    "test_file", "do_predict",
)  # fmt: skip
#: Arguments that dense training does not depend on.
_NOT_OF_DENSE = (
    *RULE, *CHOICE, "target_speedup", "target_parameters", "ticket_weights", "distillation",
    "distillation_temperature", "distillation_hidden_states", "ticket_epochs", "search_epochs", "search_steps",
    "search_learning_rate", "gate_learning_rate", "gate_l1", "gate_penalty", "early_bird_interval",
    "early_bird_threshold", "early_bird_patience", "min_search_share",
)  # fmt: skip


@dataclass(frozen=True)
class Study:
    """What is to be run: every arm on every task with every seed.

    Attributes:
        output_dir: where runs have folders, and where `results.json` and `study.md` are written.
        arms: by the task's name in the study, then by the arm's, the arguments of its runs but for seed and folder.
            All tasks have the same arms.
        seeds: at least one.
        baseline: the arm that all others are compared with.
    """

    output_dir: str
    arms: Mapping[str, Mapping[str, FinetuneArguments]]
    seeds: Sequence[int]
    baseline: str


def study(plan: Study, *, parallel: int = 1) -> dict[str, Any]:
    """Runs what is not finished of a study, seed by seed, and writes its results after every run.

    Runs are in folders that are named after their arguments: arms that have the same are one run, renaming an arm or
    adding one repeats nothing, and a search is shared by all arms that differ in nothing before the draw. A run whose
    loss is not finite is reported and the others go on; the next call tries it again.

    Args:
        plan: what is to be run.
        parallel: runs at a time, each in a process with an equal share of the processor's threads.

    Returns:
        What is in `results.json`: `runs`, one flat record for each arm, task and seed that is done, and `tables`, by
        task what is in `study.md`.

    Raises:
        UsageError: a run cannot be done as asked; as far as arguments go, found before the first one begins.
    """
    check_alone("a study")
    jobs = plan_jobs(plan)
    for args in jobs:
        args.check()
        RunDirectory(args.output_dir).check(
            asdict(args.resolved(get_task(args.task).max_length)), resume=True, overwrite=False
        )
    results = _Results(plan)
    to_do = [args for args in jobs if not results.take_finished(args)]
    logger.info("study: %d runs, %d of them finished", len(jobs), len(jobs) - len(to_do))
    unfinished = {args.output_dir for args in to_do}
    with _executing(parallel, Path(plan.output_dir)) as submit:
        running: dict[Future, FinetuneArguments] = {}
        while to_do or running:
            ready = [args for args in to_do if args.search_from not in unfinished]
            for args in ready[: parallel - len(running)]:
                to_do.remove(args)
                logger.info("run %d of %d: %s", len(jobs) - len(to_do), len(jobs), Path(args.output_dir).name)
                running[submit(args)] = args
            if not running:
                break  # what is left draws from a search that has failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                args = running.pop(future)
                if results.add(args, future):
                    unfinished.remove(args.output_dir)
    return results.write()


def plan_jobs(plan: Study) -> list[FinetuneArguments]:
    """The runs of a study in an order in which they can be done, each once: seed by seed, searches before tickets."""
    jobs: dict[str, FinetuneArguments] = {}
    for seed in plan.seeds:
        for arms in plan.arms.values():
            for arm in arms.values():
                for args in runs_of(plan, arm, seed):
                    jobs.setdefault(args.output_dir, args)
    return list(jobs.values())


def runs_of(plan: Study, arm: FinetuneArguments, seed: int) -> list[FinetuneArguments]:
    """The runs that an arm takes with a seed: its own, the last, and before it the search that it draws from."""
    arm = replace(arm, seed=seed, resume=True, overwrite_output_dir=False)
    if arm.method == "dense":
        return [_placed(plan, _without(arm, _NOT_OF_DENSE))]
    # What proximal steps leave out while they search depends on the ticket.
    if not arm.searches or arm.method == "search" or arm.gate_penalty == "proximal":
        return [_placed(plan, arm)]
    search = _placed(plan, replace(_without(arm, _OF_TICKETS), method="search"))
    return [search, _placed(plan, replace(arm, search_from=search.output_dir))]


def _without(args: FinetuneArguments, names: Sequence[str]) -> FinetuneArguments:
    """The same with some arguments' defaults."""
    usual = defaults(type(args))
    return replace(args, **{name: usual[name] for name in names})


def _placed(plan: Study, args: FinetuneArguments) -> FinetuneArguments:
    """The same with the folder that is named after the arguments: those that are not defaults, whatever is added."""
    usual = defaults(type(args))
    given = {
        name: value
        for name, value in asdict(args).items()
        if name not in FREE_ARGUMENTS and not (name in usual and value == usual[name])
    }
    digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{args.task}-{args.method}-{digest}-seed{args.seed}"
    return replace(args, output_dir=str(Path(plan.output_dir, "runs", name)))


class _Results:
    """The runs of a study that are done, and the files that are made of them."""

    def __init__(self, plan: Study) -> None:
        self._plan = plan
        self._finished: dict[str, dict[str, Any]] = {}
        self._failures: dict[str, str] = {}

    def take_finished(self, args: FinetuneArguments) -> bool:
        """Whether a run was finished before; then it is one of those that are done."""
        directory = RunDirectory(args.output_dir)
        if directory.is_finished:
            self._finished[args.output_dir] = directory.read_finished(asdict(args))
        return directory.is_finished

    def add(self, args: FinetuneArguments, future: Future) -> bool:
        """Takes what a run has returned, and writes the results so far.

        Returns:
            Whether the run is finished: not if its loss was not finite.
        """
        try:
            metrics = self._finished[args.output_dir] = future.result()
        except FloatingPointError as error:
            logger.warning("%s: %s", args.output_dir, error)
            self._failures[args.output_dir] = str(error)
            return False
        finally:
            self.write()
        metric = metrics["main_metric"]
        shown = f"{metric} {metrics['eval'][metric]:.4f}, {metrics['seconds']['total']:.1f} s"
        logger.info("%s: %s", Path(args.output_dir).name, shown)
        return True

    def write(self) -> dict[str, Any]:
        """Writes `results.json` and `study.md`, and returns what is in the first."""
        root = Path(self._plan.output_dir)
        runs = list(self._records())
        failures = [f"{Path(folder).name}: {error}" for folder, error in self._failures.items()]
        found = {"baseline": self._plan.baseline, "tables": tables(runs, self._plan.baseline), "failures": failures}
        root.mkdir(parents=True, exist_ok=True)
        text = markdown(found)
        write_json(root / "results.json", {**found, "runs": runs})
        write_bytes(root / "study.md", text.encode())
        return {**found, "runs": runs, "markdown": text}

    def _records(self) -> Iterator[dict[str, Any]]:
        """One flat record for each arm, task and seed that is done."""
        for task, arms in self._plan.arms.items():
            for name, arm in arms.items():
                for seed in self._plan.seeds:
                    args = runs_of(self._plan, arm, seed)[-1]
                    if (metrics := self._finished.get(args.output_dir)) is not None:
                        yield record(task, name, Path(args.output_dir).name, metrics)


@contextmanager
def _executing(parallel: int, root: Path) -> Iterator[Callable[[FinetuneArguments], Future]]:
    """Gives what runs something and returns its future: here and at once, or in one of several processes.

    Args:
        parallel: runs at a time.
        root: the study's folder, where the processes write their logs.
    """
    if parallel < 1:
        raise UsageError(f"--parallel: expected at least 1, found {parallel}")
    if parallel == 1:
        yield _run_here
        return
    root.mkdir(parents=True, exist_ok=True)
    # Of the processes, which read it when they load their libraries.
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // parallel))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(parallel, context, _begin_worker, (str(root / "study.log"),)) as pool:
        try:
            yield lambda args: pool.submit(run, args)
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()  # upon which a run writes a checkpoint
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            del os.environ["OMP_NUM_THREADS"]
            os.environ.update({} if before is None else {"OMP_NUM_THREADS": before})


def _begin_worker(log: str) -> None:
    """Makes a process ready for runs: Ctrl-C is for the study alone, which then ends it, and the log is a file."""
    from transformers.utils import logging as transformers_logging

    os.setpgrp()
    sys.stderr = open(log, "a", buffering=1, encoding="utf-8")  # noqa: SIM115  # for as long as the process lives
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(process)d %(message)s")
    logging.getLogger("earlybert").setLevel(logging.INFO)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _run_here(args: FinetuneArguments) -> Future:
    future: Future = Future()
    try:
        future.set_result(run(args))
    except FloatingPointError as error:
        future.set_exception(error)
    return future


def run(args: FinetuneArguments) -> dict[str, Any]:
    """One run of a study."""
    from .finetune import finetune

    return finetune(args)
