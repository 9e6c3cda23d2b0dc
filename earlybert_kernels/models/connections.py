"""Routing the calls of a converted model through packed tokens, and undoing it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

from torch import nn
from torch.utils.hooks import RemovableHandle

from . import heads
from .forward import packed_forward
from .registry import head_of

#: A module that runs packed tokens, and the handle of the hook that prepares what it is called with.
Connection = tuple[nn.Module, RemovableHandle | None]

_FORWARDS = (packed_forward, *heads.FORWARDS)


def connect(base: nn.Module, model: nn.Module, connected: list[Connection]) -> None:
    """Routes the base model, and the heads in `model` that gain by it, through packed tokens.

    Forwards are replaced on the instances alone: every class, and with it what `save_pretrained`, pipelines and
    `Trainer` find out about the model, stays what it was. A forward that was on a head already (Accelerate's, under
    autocast) is what the new one calls.

    Args:
        connected: what has been connected, to which the rest is added.
    """
    before = {module for module, _ in connected}
    if base not in before:
        base.forward = functools.partial(packed_forward, base)
        names = _arguments(type(base).forward)
        in_order = names == _arguments(packed_forward)[: len(names)]
        naming = functools.partial(heads.named, names)
        connected.append((base, None if in_order else base.register_forward_pre_hook(naming, with_kwargs=True)))
    for module in model.modules():
        if module in before or (head := head_of(module)) is None:
            continue
        prepare = functools.partial(heads.prepare, _arguments(head.stock.forward))
        connected.append((module, module.register_forward_pre_hook(prepare, with_kwargs=True)))
        if (forward := heads.forward_of(head)) is not None:
            module.forward = functools.partial(forward, module, vars(module).get("forward"))


def _arguments(forward: Callable) -> tuple[str, ...]:
    """The names of what a forward takes by position."""
    return tuple(inspect.signature(forward).parameters)[1:-1]  # neither self nor **kwargs


def disconnect(connected: list[Connection]) -> None:
    """Undoes `connect`. A forward that was wrapped since stays: what it calls sees that the model is restored."""
    for module, handle in connected:
        if handle is not None:
            handle.remove()
        forward = vars(module).get("forward")
        if not isinstance(forward, functools.partial) or forward.func not in _FORWARDS:
            continue
        _, *previous = forward.args
        del module.forward
        if previous and previous[0] is not None:
            module.forward = previous[0]
