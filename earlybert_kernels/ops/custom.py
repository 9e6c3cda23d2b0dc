"""Makes a pair of kernels, forward and backward, an op of torch's dispatcher: known to autograd and torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch.utils.flop_counter import register_flop_formula

from ..backends import backends
from ..backends.backend import Backend
from .transforms import refuse_transforms

_library = torch.library.Library("earlybert", "FRAGMENT")


class Halves(NamedTuple):
    """The two halves of an op, as functions of the arguments in its two schemas."""

    forward: Callable
    backward: Callable


class Kernels(NamedTuple):
    """One backend's version of an op.

    Attributes:
        run: what runs.
        shapes: what the compiler runs in their place: empty results of the right shapes, strides and dtypes.
    """

    run: Halves
    shapes: Halves


def define(
    name: str,
    schemas: tuple[str, str],
    *,
    kernels: Mapping[str, Kernels],
    save: Callable,
    gradients: Callable,
    flops: Halves | None = None,
) -> dict[str, Callable]:
    """Defines `torch.ops.earlybert.<name>.<backend>` and `torch.ops.earlybert.<name>_backward.<backend>`.

    Args:
        name: the op's name.
        schemas: arguments and results of forward and backward, in the dispatcher's notation.
        kernels: by backend.
        save: `(ctx, inputs, output)`, keeps what backward needs.
        gradients: `(ctx, backward, *grads)` -> a gradient or None for each input of forward; `backward` is the
            backend's op of that name.
        flops: what `torch.utils.flop_counter` counts of either half, as functions of its arguments and of `out_val`,
            its results; None for an op without matrix products, of which it counts nothing.

    Returns:
        The forward ops by backend.
    """

    def refuse(ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError(f"{name}: only the 'reference' backend can be differentiated twice")

    for backend, (run, shapes) in kernels.items():
        names = (f"{name}.{backend}", f"{name}_backward.{backend}")
        for qualified, schema, kernel, fake in zip(names, schemas, run, shapes, strict=True):
            _define(qualified, schema, backends()[backend], kernel, fake)
        backward = getattr(getattr(torch.ops.earlybert, f"{name}_backward"), backend)

        def defined_gradients(ctx: Any, *grads: Any, backward: Callable = backward) -> Any:
            refuse_transforms(f"{name}_backward", *(g for g in grads if torch.is_tensor(g)))
            if grads[0] is None:  # nothing that depends on the output has a gradient
                return (None,) * len(ctx.needs_input_grad)
            return gradients(ctx, backward, *grads)

        _differentiate(names[0], save, defined_gradients)
        torch.library.register_autograd(f"earlybert::{names[1]}", refuse)
    if flops is not None:
        for op, formula in zip((name, f"{name}_backward"), flops, strict=True):
            register_flop_formula(getattr(torch.ops.earlybert, op), get_raw=True)(formula)
    return {backend: getattr(getattr(torch.ops.earlybert, name), backend) for backend in kernels}


def _differentiate(name: str, save: Callable, gradients: Callable) -> None:
    """Gives an op, of whose arguments none has a default, its gradient.

    As `torch.library.register_autograd` does it: that looks for the defaults of missing arguments in every call, and
    makes the list of all arguments anew for each of them, which with thirty takes a quarter of a millisecond. Ops on
    lists of tensors, which an autograd function does not take as they are, have few: theirs is left to torch.
    """
    packet, backend = name.split(".")
    op = getattr(getattr(torch.ops.earlybert, packet), backend)
    schema = op._schema

    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.set_materialize_grads(False)  # or zeros would be made for everything that forward keeps for backward
        save(ctx, inputs, output)

    types = {str(value.type) for value in (*schema.arguments, *schema.returns)}
    if any("List[" in each and "Tensor" in each for each in types):
        torch.library.register_autograd(f"earlybert::{name}", gradients, setup_context=setup_context)
        return
    if any(argument.has_default_value() for argument in schema.arguments):
        raise TypeError(f"{schema}: an argument that has a default would be missing where it is that")

    def below(keyset: Any, inputs: tuple) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)

    def forward(ctx: Any, keyset: Any, *inputs: Any) -> Any:
        output = below(keyset, inputs)
        setup_context(ctx, inputs, output)
        return output

    def backward(ctx: Any, *grads: Any) -> Any:
        return (None, *gradients(ctx, *grads))

    functions = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    node: Any = type(f"{packet}_{backend}", (torch.autograd.Function,), functions)

    def run(keyset: Any, *inputs: Any) -> Any:
        needed = torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs)
        return node.apply(keyset, *inputs) if needed else below(keyset, inputs)

    _library.impl(name, run, "Autograd", with_keyset=True)


def define_in_place(name: str, kernels: Mapping[str, Callable], *, changes: Sequence[str]) -> dict[str, Callable]:
    """Defines `torch.ops.earlybert.<name>.<backend>`, which changes tensors, returns nothing and has no gradient.

    Args:
        name: the op's name.
        kernels: by backend, with annotated arguments.
        changes: those of them that change.

    Returns:
        The ops by backend.
    """
    for backend, kernel in kernels.items():
        schema = torch.library.infer_schema(kernel, mutates_args=changes)
        _define(f"{name}.{backend}", schema, backends()[backend], kernel, lambda *arguments: None)
    return {backend: getattr(getattr(torch.ops.earlybert, name), backend) for backend in kernels}


def _define(name: str, schema: str, backend: Backend, kernel: Callable, shapes: Callable) -> None:
    qualified = f"earlybert::{name}"
    torch.library.define(qualified, schema, tags=torch.Tag.pt2_compliant_tag)
    for device in {*backend.devices, *(("cpu",) if backend.emulated else ())}:
        torch.library.impl(qualified, device, kernel)
    torch.library.register_fake(qualified, shapes)
