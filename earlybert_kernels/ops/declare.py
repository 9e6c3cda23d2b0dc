"""Declares a differentiable op, on every backend that has kernels for it, of the arguments that it shares with them."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends import backends_with
from ..backends.backend import Backend
from ..units import indices
from .custom import Halves, Kernels, define
from .dispatch import register, register_reference


class Arguments(NamedTuple):
    """What goes between an op and its backends, as classes of `backends.arguments`.

    Attributes:
        inputs: what forward takes. A last field `saves`, where there is one, is not the caller's but found out: whether
            a backward may come.
        results: what it returns, the op's own result first; only that has a gradient.
        saved: what backward takes behind that gradient: fields of the inputs and of the results.
        grads: what backward returns: fields of the inputs. Nothing comes of those whose input is None.
    """

    inputs: type[NamedTuple]
    results: type[NamedTuple]
    saved: type[NamedTuple]
    grads: type[NamedTuple]


def declare(
    op: str,
    arguments: Arguments,
    *,
    reference: Callable,
    run: Callable,
    shapes: Callable[[Backend], Halves],
    kernels: Callable[[Backend], Halves] | None = None,
    flops: Halves | None = None,
    complete: Callable | None = None,
    active: str | None = None,
) -> None:
    """Registers an op's implementations: its definition, and one of every backend with a module of the op's name.

    Args:
        op: the op's name.
        arguments: of its two halves.
        reference: its definition, called as the backends' implementations are.
        run: `(compiled, backend, *arguments, **options)`, calls the dispatcher's op `compiled` with the inputs.
        shapes: backend -> functions `(inputs)` and `(grad, saved)` that return empty results.
        kernels: backend -> functions of the inputs, and of the gradient and what was saved, one by one; default: the
            `forward` and `backward` of its module.
        flops: functions `(inputs)` and `(saved)`: what `torch.utils.flop_counter` counts.
        complete: `(saved, grads)` -> grads, where backward could not return all.
        active: the option with active units, which backends that want indices are not given as a mask.
    """
    inputs, results, saved, grads = arguments
    finds_out = inputs._fields[-1] == "saves"
    schemas = (
        _schema(typing.get_type_hints(inputs), len(results._fields)),
        _schema({"grad": Tensor, **typing.get_type_hints(saved)}, len(grads._fields)),
    )
    implementing = backends_with(op)
    compiled = define(
        op,
        schemas,
        kernels={
            backend.name: Kernels(
                *(
                    halves._replace(forward=_without_saved(arguments, halves.forward)) if finds_out else halves
                    for halves in (
                        Halves(*backend.halves(op)) if kernels is None else kernels(backend),
                        by_name(arguments, shapes(backend)),
                    )
                )
            )
            for backend in implementing
        },
        save=partial(_save, _positions(arguments)),
        gradients=partial(_gradients, arguments, _positions(arguments), complete),
        flops=None if flops is None else _counted(arguments, flops),
    )
    register_reference(op, reference)
    for backend in implementing:
        call = compiled[backend.name]
        own = partial(run, partial(_call, call) if finds_out else call, backend)
        if active is not None and backend.wants_indices:
            own = partial(_run_on_indices, own, active)
        register(op, backend, own)


def _call(compiled: Callable, *given: Any) -> Any:
    """Calls an op with its last input, `saves`, behind the others: whether autograd will keep anything of the call."""
    saves = torch.is_grad_enabled() and any(torch.is_tensor(value) and value.requires_grad for value in given)
    return compiled(*given, saves)


def _without_saved(arguments: Arguments, forward: Callable) -> Callable:
    """The same, with empty tensors in the place of what only backward is given, where none can come."""
    saved_only = [name in arguments.saved._fields for name in arguments.results._fields[1:]]

    def run(*given: Any) -> tuple[Tensor, ...]:
        out, *others = forward(*given)
        if not given[-1]:
            others = [out.new_empty(0) if only else t for t, only in zip(others, saved_only, strict=True)]
        return (out, *others)

    return run


def by_name(arguments: Arguments, halves: Halves) -> Halves:
    """Functions of one argument after the other, of functions `(inputs)` and `(grad, saved)`."""
    inputs, _, saved, _ = arguments
    return Halves(
        lambda *given: tuple(halves.forward(inputs._make(given))),
        lambda grad, *given: tuple(halves.backward(grad, saved._make(given))),
    )


def _run_on_indices(run: Callable, active: str, *arguments: Any, **options: Any) -> Tensor:
    return run(*arguments, **options | {active: indices(options[active])})


def _schema(types: dict[str, type], results: int) -> str:
    """Arguments of these names and types, and so many tensors as results, in the dispatcher's notation."""

    def prototype() -> None: ...

    parameters = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=t) for n, t in types.items()]
    tensors = tuple.__class_getitem__((Tensor,) * results)
    vars(prototype)["__signature__"] = inspect.Signature(parameters, return_annotation=tensors)
    return torch.library.infer_schema(prototype, mutates_args=())


class _Positions(NamedTuple):
    """Where things are: found once, because every step of a training needs them.

    Attributes:
        tensors, others: of what is saved, among the inputs and results.
        saved: of the fields of what is saved, among the saved tensors and others.
        grads: of each input's gradient, among the gradients; None where it has none.
    """

    tensors: list[int]
    others: list[int]
    saved: list[int]
    grads: list[int | None]


def _positions(arguments: Arguments) -> _Positions:
    inputs, results, saved, grads = arguments
    names, types = (*inputs._fields, *results._fields), typing.get_type_hints(saved)
    tensors = [name for name in saved._fields if Tensor in (types[name], *typing.get_args(types[name]))]
    others = [name for name in saved._fields if name not in tensors]
    return _Positions(
        [names.index(name) for name in tensors],
        [names.index(name) for name in others],
        [[*tensors, *others].index(name) for name in saved._fields],
        [grads._fields.index(name) if name in grads._fields else None for name in inputs._fields],
    )


def _save(at: _Positions, ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    given = (*inputs, *output)
    ctx.others = [given[i] for i in at.others]
    ctx.absent = [value is None for value in inputs]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*(given[i] for i in at.tensors))


def _gradients(
    arguments: Arguments,
    at: _Positions,
    complete: Callable | None,
    ctx: Any,
    backward: Callable,
    grad: Tensor,
    *others: None,
) -> tuple[Tensor | None, ...]:
    kept = (*ctx.saved_tensors, *ctx.others)
    saved = arguments.saved._make(kept[i] for i in at.saved)
    grads = backward(grad, *saved)
    if complete is not None:
        grads = complete(saved, arguments.grads._make(grads))
    return tuple(
        None if i is None or is_absent else grads[i] for i, is_absent in zip(at.grads, ctx.absent, strict=True)
    )


def _counted(arguments: Arguments, flops: Halves) -> Halves:
    inputs, _, saved, _ = arguments

    def forward(*given: Any, out_val: Any = None) -> int:
        return flops.forward(inputs._make(given))

    def backward(grad: Tensor, *given: Any, out_val: Any = None) -> int:
        return flops.backward(saved._make(given))

    return Halves(forward, backward)
