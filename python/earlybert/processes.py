"""What a run of several processes (torchrun, `accelerate launch`) needs besides torch.distributed's own."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .errors import ElsewhereError, LostProcessError, UsageError
from .launcher import attempt, launched_count, local_rank

T = TypeVar("T")

#: How long processes wait for one that does something alone, such as tokenising a corpus. Of one that has ended they
#: hear at once.
PATIENCE = timedelta(days=1)


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _is_group() else 1


def rank() -> int:
    """The number of this process among them; the first is 0."""
    return dist.get_rank() if _is_group() else 0


def _is_group() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def joined() -> Iterator[None]:
    """Makes one group, while within, of the processes that torchrun or `accelerate launch` has started.

    The first alone writes to the log. A group that there is already is taken as it is, and stays.

    Raises:
        UsageError: what they were started by does not say how they find each other.
        LostProcessError: another process has ended.
    """
    is_own = launched_count() > 1 and not _is_group()
    if is_own:
        try:
            store, own_rank, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
            # torchrun (2.13) keeps its store when it starts processes anew, and the addresses of the last ones in it.
            store = dist.PrefixStore(f"attempt {attempt()}", store)  # type: ignore[attr-defined]
            # Tensors on a processor go by gloo, those on a GPU by NCCL.
            dist.init_process_group(store=store, rank=own_rank, world_size=size, timeout=PATIENCE)
        except ValueError as error:
            raise UsageError(
                f"this is one of {launched_count()} processes (WORLD_SIZE), which cannot find each other: {error}; "
                "start them with torchrun or accelerate launch, or one process without WORLD_SIZE"
            ) from None
    logger = logging.getLogger(__package__)
    level = logger.level
    if rank() > 0:
        logger.setLevel(logging.CRITICAL + 1)
    loss = ""
    try:
        yield
    except RuntimeError as error:
        if count() == 1 or not _tells_of_a_loss(error):
            raise
        loss = f"process {rank()} of {count()}: another process has ended, and with it the run"
    finally:
        logger.setLevel(level)
        if is_own:
            gc.collect()  # a DistributedDataParallel that outlives the group may hang (torch 2.13, gloo)
            dist.destroy_process_group()
    if loss:  # out here, where no traceback holds a DistributedDataParallel
        raise LostProcessError(loss)


def _tells_of_a_loss(error: RuntimeError) -> bool:
    """Whether a collective has raised it because another process is gone: gloo's errors have no class of their own."""
    return "gloo/transport/" in str(error)


@contextmanager
def together() -> Iterator[None]:
    """All processes do what is within, and an error of one ends it in all.

    The first process of a machine goes before, so that the others find in caches what it has downloaded or made.

    Raises:
        ElsewhereError: it was another process that failed, and raises what it met.
    """
    if count() == 1:
        yield
        return
    failure: Exception | None = None
    try:
        if local_rank() > 0:
            gather(None)
        try:
            yield
        finally:
            if local_rank() == 0:
                gather(None)
    except Exception as error:
        failure = error
    _fail_together(failure)


def on_first(work: Callable[[], T]) -> T:
    """What `work` gives in the first process, which alone does it.

    Raises:
        ElsewhereError: in the others, if it has failed in the first.
    """
    if count() == 1:
        return work()
    found: list[Any] = [None]
    failure: Exception | None = None
    if rank() == 0:
        try:
            found = [work()]
        except Exception as error:
            failure = error
    _fail_together(failure)
    dist.broadcast_object_list(found)
    return found[0]


def _fail_together(failure: Exception | None) -> None:
    """Raises, if there is a failure in any process, in the first of these its own, and in all others that it did."""
    said = gather(None if failure is None else str(failure))
    failed = [number for number, message in enumerate(said) if message is not None]
    if not failed:
        return
    if failure is not None and rank() == failed[0]:
        raise failure
    raise ElsewhereError(said[failed[0]])


def gather(value: T) -> list[T]:
    """The values of all processes, by rank. They are pickled; tensors are better on the CPU."""
    values: list[Any] = [value] * count()
    if count() > 1:
        dist.all_gather_object(values, value)
    return values


def total(number: int) -> int:
    """The sum of all processes' numbers."""
    if count() == 1:
        return number
    found = torch.tensor(number, dtype=torch.int64)  # a bool has no sum
    dist.all_reduce(found)
    return int(found)


def differing(values: dict[str, Any]) -> list[str]:
    """The names of those values that are not the same in all processes."""
    first, *others = gather(values)
    return [name for name, value in first.items() if any(other.get(name) != value for other in others)]


def check_same(what: str, value: Any) -> None:
    """Raises unless all processes have the same value; all of them have to call this.

    Args:
        what: it is, for the error.
        value: plain, with an equality of its own.

    Raises:
        RuntimeError: they have not. It is raised in every process, so that none waits for another.
    """
    values = gather(value)
    if others := [number for number, other in enumerate(values) if other != values[0]]:
        raise RuntimeError(
            f"{what} of process {others[0]} of {len(values)} is not that of process 0: the processes have not trained "
            "one model. Wrap it in DistributedDataParallel once its gates are there and train what is wrapped, with "
            "the same settings in every process"
        )


def average(tensors: Iterable[Tensor]) -> None:
    """Replaces tensors of one dtype by their means over all processes, in place, by one all-reduce."""
    tensors = list(tensors)
    if count() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, mean in zip(tensors, (flat / count()).split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def rewrap(wrapper: DistributedDataParallel) -> None:
    """Makes a wrapper anew, in place, for the Parameters that its module has by now.

    Whoever holds the wrapper, as Trainer and Accelerate do, goes on with it. It gets the settings that it was made
    with; process 0's weights go to all.

    Raises:
        NotImplementedError: the wrapper computes in mixed precision of its own.
    """
    if wrapper.mixed_precision is not None:
        raise NotImplementedError("DistributedDataParallel(mixed_precision=...) cannot be made anew: use autocast")
    hooks = wrapper._comm_hooks
    # torch 2.13 warns of the argument, whatever it says.
    buffers: dict[str, Any] = {} if wrapper.broadcast_buffers else {"broadcast_buffers": False}
    wrapper.__init__(  # type: ignore[misc]
        wrapper.module,
        device_ids=wrapper.device_ids,
        output_device=wrapper.output_device,
        dim=wrapper.dim,
        process_group=wrapper.process_group,
        bucket_cap_mb=None if wrapper.bucket_bytes_cap_default else wrapper.bucket_bytes_cap / 2**20,
        find_unused_parameters=wrapper.find_unused_parameters,
        gradient_as_bucket_view=wrapper.gradient_as_bucket_view,
        static_graph=wrapper.static_graph,
        **buffers,
    )
    for hook, state in hooks:
        wrapper.register_comm_hook(state, hook)


def wrapper_of(model: nn.Module) -> DistributedDataParallel:
    """The wrapper that a model is in, which neither torch nor Trainer tells those who hold the model.

    Raises:
        UsageError: there is none, or more than one.
    """
    gc.collect()
    found = [o for o in gc.get_objects() if issubclass(type(o), DistributedDataParallel) and o.module is model]
    if len(found) != 1:
        raise UsageError(
            f"expected the model in one DistributedDataParallel, which trains it in {count()} processes, found "
            f"{len(found)}"
        )
    return found[0]
