"""Which backend runs an op: every op registers its implementations here, every call chooses one here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..backends import DEFAULT_ARCHITECTURE, architecture_of
from ..backends import backends as all_backends
from ..backends.backend import Backend
from . import choices
from .transforms import refuse_transforms

#: The names of all backends, best first where the table of choices says nothing.
BACKENDS = (*all_backends(), "reference")
#: Those that take what is not on a GPU unasked: nobody who computes on the CPU is made to wait for a driver.
_OFF_GPUS = (*(b.name for b in all_backends().values() if "cpu" in b.devices), "reference")

# A plain global and no ContextVar: torch.compile cannot trace the latter.
_forced: str | None = None
# Contexts of `use_backend` that are open, the newest last: those of other threads may close in any order.
_open: list[list[str]] = []
#: What `record_backends` fills while it is open.
_record: dict[str, str] | None = None


class BackendUnavailableError(RuntimeError):
    """A backend was asked for, by a call, `use_backend` or the environment, that cannot run the call."""


@dataclass(frozen=True)
class Implementation:
    """One backend's version of one op.

    Attributes:
        run: the callable; every backend of an op takes the same arguments.
        unavailable: why this backend cannot run in this process at all (not built, no device), or None; the same
            for as long as the process lives.
        refuses: why it cannot take these tensors (device, dtype, sizes), or None; called as `choose` was.
        on_demand: whether it runs only where it is asked for by name.
        gathers_units: as in `backends.backend.Backend`.
        stands_in: whether it also runs where a backend is forced for a whole process and cannot run the call.
    """

    run: Callable
    unavailable: Callable[[], str | None]
    refuses: Callable[..., str | None]
    on_demand: bool = False
    gathers_units: bool = False
    stands_in: bool = False


_implementations: dict[str, dict[str, Implementation]] = {}


def register(op: str, backend: Backend, run: Callable) -> None:
    """Makes `run` the implementation of `op` on a backend."""
    refuses = backend.refusals.get(op, backend.refuses)
    own = Implementation(run, backend.unavailable, refuses, backend.emulated, backend.gathers_units)
    _implementations.setdefault(op, {})[backend.name] = own


def register_reference(op: str, run: Callable, *, stands_in: bool = False) -> None:
    """Makes `run` the definition of `op`, in plain PyTorch; `stands_in` as in `Implementation`."""
    own = Implementation(run, lambda: None, lambda *tensors, **facts: None, stands_in=stands_in)
    _implementations.setdefault(op, {})["reference"] = own


def op_names() -> list[str]:
    """The names of all ops."""
    return sorted(_implementations)


def backends(name: str) -> list[str]:
    """The backends that can run op `name` in this process, best first.

    Best is what the table of choices (`choices.json`) says of torch's current GPU and large inputs, or of the GPU that
    a machine without one is taken for.

    Raises:
        ValueError: there is no op of that name.
    """
    if name not in _implementations:
        raise ValueError(f"no op named {name!r}; the ops are {', '.join(op_names())}")
    table = _implementations[name]
    gpu = torch.cuda.current_device() if torch.cuda.is_available() else None
    _, order = _orders(name, gpu)[-1]
    return [b for b in order if b in table and _unavailable(name, b) is None]


def unavailable(name: str) -> dict[str, str]:
    """The backends that op `name` has but that cannot run in this process, and why."""
    reasons = {b: _unavailable(name, b) for b in BACKENDS if b in _implementations[name]}
    return {backend: reason for backend, reason in reasons.items() if reason is not None}


@contextlib.contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Within the context every op of the process runs on `backend`, or raises if it cannot.

    Except ops that move data or look at tickets: for `gather_units`, `pad`, `unpad`, `ticket_masks` and
    `ticket_distance` plain PyTorch stands in where `backend` cannot run them.
    `EARLYBERT_BACKEND` in the environment does the same for a whole run.

    Raises:
        ValueError: there is no backend of that name.
        BackendUnavailableError: raised by an op inside the context that `backend` cannot run; nothing else falls back.
    """
    global _forced
    own = [_known(backend)]
    _open.append(own)
    _forced = backend
    try:
        yield
    finally:
        _open[:] = [other for other in _open if other is not own]
        _forced = _open[-1][0] if _open else None


@contextlib.contextmanager
def record_backends() -> Iterator[dict[str, str]]:
    """Within the context, notes by op which backend runs it, of several the last; gives the notes."""
    global _record
    before, _record = _record, {}
    try:
        yield _record
    finally:
        _record = before


def choose(op: str, backend: str | None, *tensors: torch.Tensor | None, size: int = 0, **facts: int) -> Callable:
    """The implementation of `op` to call on `tensors`; arguments and errors are `chosen`'s."""
    return _implementations[op][chosen(op, backend, *tensors, size=size, **facts)].run


def chosen(op: str, backend: str | None, *tensors: torch.Tensor | None, size: int = 0, **facts: int) -> str:
    """The backend that is about to run `op` on `tensors`; arguments and errors are `pick`'s.

    Raises:
        NotImplementedError: a kernel would lose forward-mode tangents, or stands in a torch.func transform.
    """
    name = pick(op, backend, *tensors, size=size, **facts)
    if _record is not None:
        _record[op] = name
    if name != "reference":
        refuse_transforms(op, *tensors)
    return name


def pick(op: str, backend: str | None, *tensors: torch.Tensor | None, size: int = 0, **facts: int) -> str:
    """The backend that runs `op` on `tensors`: the forced one, else the best that takes them.

    Args:
        op: the op's name.
        backend: the caller's own choice, before `use_backend` and `EARLYBERT_BACKEND`.
        tensors: what the op was given; absent ones are None.
        size: what the table of choices goes by: the op's tokens, or attention's longest sequence.
        facts: what else backends may refuse.

    Raises:
        ValueError: there is no backend of that name.
        BackendUnavailableError: a backend was forced and cannot run this call; the message says why.
    """
    table = _implementations[op]
    forced = backend or _forced or os.environ.get("EARLYBERT_BACKEND") or None
    if forced is None:
        # `reference` takes everything.
        return next(
            b
            for b in _order(op, tensors[0], size)
            if b in table
            and not table[b].on_demand
            and _unavailable(op, b) is None
            and table[b].refuses(*tensors, **facts) is None
        )
    _known(forced)
    reason: str | None
    if forced not in table:
        reason = f"it has no {forced!r} implementation"
    else:
        reason = _unavailable(op, forced) or table[forced].refuses(*tensors, **facts)
    if reason is not None and backend is None and table["reference"].stands_in:
        return "reference"
    if reason is not None:
        raise BackendUnavailableError(
            f"{op}: backend {forced!r} was asked for but cannot run this call: {reason}. "
            f"Backends of this op here: {', '.join(backends(op))}."
        )
    return forced


def gathers_units(op: str, *tensors: torch.Tensor | None, size: int = 0) -> bool:
    """Whether what `choose` chooses gathers active units' weights in every call; arguments and errors are `pick`'s."""
    return _implementations[op][pick(op, None, *tensors, size=size)].gathers_units


def _order(op: str, tensor: torch.Tensor | None, size: int) -> tuple[str, ...]:
    if tensor is None or tensor.device.type != "cuda":
        return _OFF_GPUS
    return _order_on(tensor.device.index, op, size)


def _order_on(gpu: int | None, op: str, size: int) -> tuple[str, ...]:
    orders = _orders(op, gpu)
    if len(orders) == 1:  # without a look at the size, so that a compiled graph holds for all sizes
        return orders[0][1]
    return [order for begin, order in orders if size >= begin][-1]


@torch.compiler.assume_constant_result
def _orders(op: str, gpu: int | None) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """`choices.orders` for the GPU of that index, with the backends that it does not name before `reference`."""
    known = choices.orders(op, DEFAULT_ARCHITECTURE if gpu is None else architecture_of(gpu)) or ((0, BACKENDS),)
    found = []
    for size, order in known:
        at = order.index("reference")
        found.append((size, (*order[:at], *(b for b in BACKENDS if b not in order), *order[at:])))
    return tuple(found)


@torch.compiler.assume_constant_result
def _unavailable(op: str, backend: str) -> str | None:
    """The backend's `unavailable`. Asked, not traced: it looks for packages, files and devices."""
    return _implementations[op][backend].unavailable()


def _known(backend: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"no backend named {backend!r}; the backends are {', '.join(BACKENDS)}")
    return backend
