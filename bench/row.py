"""One row of the microbenchmarks: a case is checked, timed against the baseline, and described."""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

import earlybert_kernels as ek

from .cases import BASELINE, PEERS, TORCH_PROVIDERS, Case, Problem
from .correctness import check_results
from .floors import Floor
from .paired import run_paired
from .provider import Provider
from .record import wait_for
from .subject import Subject

#: The machine's rates in a dtype, as `rates.measure_rates` gives them.
Rates = Callable[[torch.dtype], dict[str, float]]


class _Bench:
    """A subject with its providers and its exact results, for all rows of a problem."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        # All subjects of an op compile the same code: without a reset the compiler would reach its limit.
        torch._dynamo.reset()
        self.provider = functools.cache(functools.partial(Provider, subject))
        self.results = functools.cache(lambda name: self.provider(name).results())
        self.exact = functools.cache(lambda: Provider(subject, "reference", torch.float64).results())


@functools.lru_cache(maxsize=1)
def _bench(subject: type[Subject], problem: Problem) -> _Bench:
    return _Bench(subject(problem))


class CannotRunError(RuntimeError):
    """The backend does not take such tensors."""


def measure_row(benchmark: Any, subject_class: type[Subject], case: Case, rounds: int, rates: Rates) -> None:
    """Checks and times one row and describes it in pytest-benchmark's `extra_info`.

    Raises:
        WrongResultError: the provider's results are wrong, so that there is no row.
        CannotRunError: the provider does not take the problem's tensors.
    """
    problem = case.problem
    benchmark.group = "-".join((problem.op, problem.shape, problem.lengths, problem.unit, case.mode))
    bench = _bench(subject_class, problem)
    subject = bench.subject
    try:
        results = bench.results(case.provider)
        if case.provider in PEERS:  # one may know no dropout, no mask, or no such size
            bench.provider(case.provider).prepare("full", subject.dropout)()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if case.provider in PEERS or isinstance(error, ek.ops.BackendUnavailableError):
            raise CannotRunError(str(error)) from None
        raise
    errors = check_results(
        results,
        bench.results(BASELINE),
        bench.exact(),
        problem.dtype,
        by_torch=case.provider in TORCH_PROVIDERS,
    )
    # The baseline has inputs of its own, so that it never warms the cache for what is measured.
    provider, baseline = bench.provider(case.provider), Provider(subject, BASELINE)
    times = run_paired(
        benchmark,
        lambda copy: provider.prepare(case.mode, subject.dropout, copy),
        lambda copy: baseline.prepare(case.mode, subject.dropout, copy),
        problem.device,
        rounds,
    )
    if times is None:
        return
    benchmark.extra_info.update(
        op=problem.op,
        shape=problem.shape,
        lengths=problem.lengths,
        unit=problem.unit,
        mode=case.mode,
        provider=case.provider,
        baseline=BASELINE,
        dtype=str(problem.dtype).removeprefix("torch."),
        dropout=subject.dropout,
        kept_share=subject.kept_share,
        sequences=len(subject.lengths),
        tokens=subject.num_tokens,
        padded_tokens=len(subject.lengths) * max(subject.lengths),
        sequence_lengths=subject.lengths,
        errors=errors,
        **times,
        **floor_entries(subject.floors()[case.mode], times["seconds"], rates(problem.dtype)),
    )


def profile_row(subject_class: type[Subject], case: Case) -> None:
    """Runs a row's call three times, and on a GPU once more between cudaProfilerStart and cudaProfilerStop."""
    subject, device = _bench(subject_class, case.problem).subject, case.problem.device
    call = Provider(subject, case.provider).prepare(case.mode, subject.dropout)
    for _ in range(3):
        call()
    wait_for(device)
    with torch.cuda.profiler.profile() if device.type == "cuda" else contextlib.nullcontext():
        call()
        wait_for(device)


def floor_entries(floor: Floor, seconds: Sequence[float], rates: dict[str, float]) -> dict[str, Any]:
    """What a row says about its floor.

    Args:
        floor: the op's.
        seconds: of each round.
        rates: of the machine.

    Returns:
        `floor_flops`, `floor_bytes`, the `gflops_per_second` and `gbytes_per_second` at which the median round did
        the floor's work, the machine's `rates`, and `floor_share`: the time that the floor's work takes at those rates,
        as a share of the median. It exceeds 1 where the tensors stay in a cache.
    """
    median = statistics.median(seconds)
    return {
        "floor_flops": floor.flops,
        "floor_bytes": floor.bytes,
        "gflops_per_second": floor.flops / median / 1e9,
        "gbytes_per_second": floor.bytes / median / 1e9,
        "rates": rates,
        "floor_share": floor.seconds(**rates) / median,
    }
