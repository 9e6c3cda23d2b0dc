"""What a backend's package says of itself."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to run ops, as its package states it: `BACKEND` of `earlybert_kernels.backends.NAME`.

    The kernels are in modules of the package, one an op and named as it; an op without one does not run there.

    Attributes:
        name: of the package, by which users ask for the backend.
        rank: where it stands among the backends if the table of choices says nothing, the lowest first.
        devices: the types of devices that its kernels are for.
        emulated: whether they run on the CPU in this process, under an emulator or interpreter. That is far too slow to
            be chosen unasked: then it runs only where it is asked for by name.
        unavailable: why no op can run on it in this process (not built, no device), or None; the same for as long as
            the process lives.
        refuses: why it cannot take some tensors (device, dtype, sizes), or None; called as `ops.dispatch.choose`.
        refusals: by op, what takes its place for ops that take less.
        wants_indices: whether active units are turned from a mask into indices before its kernels see them.
        gathers_units: whether its sublayers gather the active units' weights anew in every call.
        joins_projections: whether its attention sublayer keeps q, k and v of a head side by side in one tensor.
        rounds_factors: whether its kernels, under autocast to bfloat16, take float32 and round what products take.
        logits_pitch: what the length of its rows of logits in memory is a multiple of.
    """

    name: str
    rank: int
    devices: tuple[str, ...]
    emulated: bool = False
    unavailable: Callable[[], str | None]
    refuses: Callable[..., str | None]
    refusals: Mapping[str, Callable[..., str | None]] = field(default_factory=dict)
    wants_indices: bool = False
    gathers_units: bool = False
    joins_projections: bool = False
    rounds_factors: bool = False
    logits_pitch: int = 1

    def has(self, module: str) -> bool:
        """Whether its package has a module of that name."""
        return importlib.util.find_spec(self._path(module)) is not None

    def function(self, module: str, name: str) -> Callable:
        """A function of one of its modules, which is imported at the first call: it may need what is not installed."""
        path = self._path(module)

        def call(*arguments: Any, **options: Any) -> Any:
            return getattr(_module(path), name)(*arguments, **options)

        return call

    def halves(self, module: str) -> tuple[Callable, Callable]:
        """The functions `forward` and `backward` of one of its modules."""
        return self.function(module, "forward"), self.function(module, "backward")

    def _path(self, module: str) -> str:
        return f"{__package__}.{self.name}.{module}"


_module = cache(importlib.import_module)
