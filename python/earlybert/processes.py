"""What a run of several processes (torchrun, `accelerate launch`) needs besides torch.distributed's own."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .errors import UsageError


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def check_same(what: str, value: Any) -> None:
    """Raises unless all processes have the same value; all of them have to call this.

    Args:
        what: it is, for the error.
        value: plain, with an equality of its own.

    Raises:
        RuntimeError: they have not. It is raised in every process, so that none waits for another.
    """
    if count() == 1:
        return
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    if others := [rank for rank, other in enumerate(values) if other != values[0]]:
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
