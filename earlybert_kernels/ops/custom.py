"""Makes a pair of kernels, forward and backward, an op of torch's dispatcher: known to autograd and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch


class Kernels(NamedTuple):
    """The two halves of an op, as functions of the arguments in its two schemas."""

    forward: Callable
    backward: Callable


def define(
    name: str,
    schemas: tuple[str, str],
    *,
    kernels: dict[str, Kernels],
    shapes: Kernels,
    save: Callable,
    gradients: Callable,
) -> None:
    """Defines `torch.ops.earlybert.<name>` and `torch.ops.earlybert.<name>_backward`.

    Args:
        name: the op's name.
        schemas: arguments and results of forward and backward, in the dispatcher's notation.
        kernels: the implementations by device type.
        shapes: what the compiler runs in their place: empty results of the right shapes and dtypes.
        save: `(ctx, inputs, output)`, keeps what backward needs.
        gradients: `(ctx, *grads)` -> a gradient or None for each input of forward.
    """
    names = (name, f"{name}_backward")
    for half, own, schema, fake in zip(Kernels._fields, names, schemas, shapes, strict=True):
        torch.library.define(f"earlybert::{own}", schema, tags=torch.Tag.pt2_compliant_tag)
        for device, pair in kernels.items():
            torch.library.impl(f"earlybert::{own}", device, getattr(pair, half))
        torch.library.register_fake(f"earlybert::{own}", fake)

    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)  # or zeros would be made for everything that forward keeps for backward
        save(ctx, inputs, output)

    def defined_gradients(ctx, *grads):
        if grads[0] is None:  # nothing that depends on the output has a gradient
            return (None,) * len(ctx.needs_input_grad)
        return gradients(ctx, *grads)

    torch.library.register_autograd(f"earlybert::{name}", defined_gradients, setup_context=setup_context)

    def refuse(ctx, *grads):
        raise RuntimeError(f"{name}: only the 'reference' backend can be differentiated twice")

    torch.library.register_autograd(f"earlybert::{name}_backward", refuse)
