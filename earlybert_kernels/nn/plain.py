"""Whether calling a module would do more than its class says, which a fused layer would leave out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import chain

from torch import nn


def extension(module: nn.Module) -> str | None:
    """What was put on a module that only calling it would run, in words; None if nothing.

    Hooks do not count with which transformers records outputs of stock layers, nor those of our gates.
    """
    own = module.__dict__  # asked of every module in every call: twice as fast as by attributes
    if not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
    ):
        return None
    if any(map(_is_foreign, chain(module._forward_hooks.values(), module._forward_pre_hooks.values()))):
        return "carries forward hooks"
    if module._backward_hooks or module._backward_pre_hooks:
        return "carries backward hooks"
    return "has a forward of its own" if "forward" in module.__dict__ else None


def _is_foreign(hook: Callable) -> bool:
    function = hook.func if isinstance(hook, functools.partial) else hook
    return not (getattr(function, "__module__", None) or "").startswith(
        ("transformers.utils.output_capturing", "earlybert_kernels.")
    )
