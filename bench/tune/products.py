"""Finds the Triton backend's table of matrix products for the GPU that is here: tiles, and library or kernel.

    python -m bench.tune --output products.json

Writes `earlybert_kernels/backends/triton/products.json` anew, with the part of this GPU's architecture measured; look
at it, and copy it over that one. What is measured are the products of one layer of BERT-base in bfloat16 as ops call
them, passes over their operands and results included: for each kind of product and number of tokens, the tile with
which they take the least time together, and whether the library takes less.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources, PTXASError

from earlybert.files import write_bytes
from earlybert_kernels.backends.triton import INTERPRETED, products
from earlybert_kernels.backends.triton.launch import architecture
from earlybert_kernels.backends.triton.matmul import Tile

from .. import provenance
from ..device_timer import DeviceTimer, Prepare
from ..report import tables
from ..shapes import SHAPES
from . import choice_tables

#: What is tried; the first of those that are equally fast is taken.
TILES = (
    Tile(64, 64, 64, 4, 4),
    Tile(64, 128, 64, 4, 4),
    Tile(128, 64, 64, 4, 4),
    Tile(64, 128, 64, 8, 4),
    Tile(128, 128, 64, 8, 3),
    Tile(128, 128, 64, 8, 4),
    Tile(128, 256, 64, 8, 3),
    Tile(256, 128, 64, 8, 3),
)
#: Parts of the inner dimension that are tried for a weight's gradient, whose inner dimension are the tokens.
PARTS = (1, 2, 4, 8)
TOKENS = (512, 4096, 16384)
_WARM_UP, _MEASUREMENTS = 2, 3
_ACTIVATION = "gelu"
#: Triton's interpreter, by which the search can be tried out, has a bfloat16 of its own.
_DTYPE = torch.float32 if INTERPRETED else torch.bfloat16
#: By how much a kernel's result may differ from the library's, of the largest number: both are rounded to bfloat16.
_TOLERANCE = 0.02
_NO_ROOM = (OutOfResources, PTXASError)


class Layer(NamedTuple):
    """The widths of an encoder layer: E and F."""

    hidden: int
    neurons: int

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of its linear layers; those of queries, keys and values are one product."""
        return {
            "projections": (3 * self.hidden, self.hidden),
            "output": (self.hidden, self.hidden),
            "w_in": (self.neurons, self.hidden),
            "w_out": (self.hidden, self.neurons),
        }


#: Library or kernel, the kernel's tile, and its parts: what `products.choice` returns.
Choice = tuple[bool, Tile, int]
Run = Callable[[], object]


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the arguments, measures, prints the times, writes the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="file for the new table")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="base", help="whose layer; default: %(default)s")
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS), help="in rising order; %(default)s")
    args = parser.parse_args(argv)
    device = provenance.pick_device()
    if device.type != "cuda" and not INTERPRETED:
        parser.error("a table is measured on a GPU, and torch sees none")
    layer = Layer(SHAPES[args.shape].hidden, SHAPES[args.shape].neurons)
    tiles, parts = (TILES[:1], PARTS[:2]) if INTERPRETED else (TILES, PARTS)  # enough to try the search out
    compile_all(layer, args.tokens[0], tiles)
    entries = sweep(layer, args.tokens, tiles, parts, device)
    write_bytes(args.output, choice_tables.as_text(new_table(entries, device)).encode())


def compile_all(layer: Layer, tokens: int, tiles: Sequence[Tile]) -> None:
    """Has Triton compile what `sweep` needs, a tile a process: what one of them has compiled the others find."""
    with ProcessPoolExecutor(len(tiles), mp_context=get_context("spawn")) as pool:
        list(pool.map(_run_all, itertools.repeat(layer), itertools.repeat(tokens), tiles))


def _run_all(layer: Layer, tokens: int, tile: Tile) -> None:
    device = provenance.pick_device()
    for kind in products.KINDS:
        for call, parts in itertools.product(calls(kind, layer, tokens, device), PARTS[:2]):
            with contextlib.suppress(*_NO_ROOM):
                _check(call, (False, tile, parts))


def sweep(
    layer: Layer, tokens: Sequence[int], tiles: Sequence[Tile], parts: Sequence[int], device: torch.device
) -> dict[str, list[dict[str, Any]]]:
    """Measures every kind of product at every number of tokens, and prints what it finds.

    Returns:
        The entries of one architecture, as `products.table` has them.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for kind in products.KINDS:
        found[kind] = []
        for number, count in enumerate(tokens):
            own_parts = parts if kind == "grad_weight" else (1,)
            library = _seconds(kind, layer, count, device, (True, tiles[0], 1))
            kernels = {
                (tile, part): _seconds(kind, layer, count, device, (False, tile, part))
                for tile, part in itertools.product(tiles, own_parts)
            }
            best = min(kernels, key=kernels.__getitem__)
            print(
                f"{kind}, {count} tokens: library {1e6 * library:.1f} us; kernel, us: "
                + ", ".join(f"{tuple(t)}/{p} {1e6 * kernels[t, p]:.1f}" for t, p in sorted(kernels, key=kernels.get)),
                flush=True,
            )
            # Between two numbers of tokens that were measured the nearer one decides, by their ratio.
            begin = 0 if number == 0 else round(math.sqrt(tokens[number - 1] * count))
            entry: dict[str, Any] = {"from_tokens": begin}
            entry |= {"run": "library" if library <= kernels[best] else "triton", "tile": list(best[0])}
            if best[1] > 1:
                entry["parts"] = best[1]
            if not found[kind] or found[kind][-1] | {"from_tokens": begin} != entry:
                found[kind].append(entry)
    return found


def calls(kind: str, layer: Layer, tokens: int, device: torch.device) -> list[Prepare]:
    """A layer's products of a kind, each as a `DeviceTimer` takes it, as ops make them under autocast.

    The gradient of a sublayer's input is added to that of the residual, which is float32.
    """
    linears = layer.linears
    if kind == "forward_activation":
        return [_prepared(_linear, linears["w_in"], tokens, device, _ACTIVATION)]
    if kind == "grad_input_activation":
        return [_prepared(_linear_grad_preactivation, linears["w_out"], tokens, device)]
    if kind == "forward":
        return [_prepared(_linear, linears[name], tokens, device) for name in ("projections", "output", "w_out")]
    if kind == "grad_input":
        added = {"projections": True, "output": False, "w_in": True}
        return [_prepared(_linear_grad_input, linears[name], tokens, device, add) for name, add in added.items()]
    return [_prepared(_linear_grad_weight, shape, tokens, device) for shape in linears.values()]


def _linear(x: Tensor, grad_y: Tensor, weight: Tensor, activation: str = "none") -> Run:
    bias = weight[:, 0].contiguous()
    return lambda: products.linear(x, weight, bias, activation=activation)


def _linear_grad_input(x: Tensor, grad_y: Tensor, weight: Tensor, add: bool) -> Run:
    total = x.float() if add else None
    return lambda: products.linear_grad_input(grad_y, weight, add_to=total)


def _linear_grad_preactivation(x: Tensor, grad_y: Tensor, weight: Tensor) -> Run:
    return lambda: products.linear_grad_preactivation(grad_y, weight, x, _ACTIVATION)


def _linear_grad_weight(x: Tensor, grad_y: Tensor, weight: Tensor) -> Run:
    return lambda: products.linear_grad_weight(grad_y, x)


def _prepared(
    make: Callable[..., Run], shape: tuple[int, int], tokens: int, device: torch.device, *options: object
) -> Prepare:
    """What `make` gives for random operands of a linear layer with so many outputs and inputs."""
    copies: list[tuple[Tensor, ...]] = []

    def prepare(copy: int) -> Run:
        outputs, inputs = shape
        while len(copies) <= copy:
            sizes = ((tokens, inputs), (tokens, outputs), (outputs, inputs))
            copies.append(tuple(torch.randn(size, device=device, dtype=_DTYPE) for size in sizes))
        return make(*copies[copy], *options)

    return prepare


@contextlib.contextmanager
def forced(*choice: Any) -> Iterator[None]:
    """Within the context all products are computed in one way, a `Choice`."""
    with mock.patch.object(products, "choice", return_value=choice):
        yield


def _seconds(kind: str, layer: Layer, tokens: int, device: torch.device, choice: Choice) -> float:
    """Of a layer's products of a kind together; infinite where the GPU has no room for the tile."""
    total = 0.0
    for call in calls(kind, layer, tokens, device):
        try:
            _check(call, choice)
        except _NO_ROOM:
            return math.inf
        with forced(*choice):
            timer = DeviceTimer(call, device)
            for _ in range(_WARM_UP):
                timer.warm_up()
            total += statistics.median(timer.seconds() for _ in range(_MEASUREMENTS))
    return total


def _check(call: Prepare, choice: Choice) -> None:
    """Raises AssertionError if the kernel's results are not the library's, but for rounding."""
    tile = choice[1]
    with forced(*choice):
        ours = call(0)()
    with forced(True, tile, 1):
        expected = call(0)()
    for a, b in zip(_tensors(ours), _tensors(expected), strict=True):
        error, scale = (a.float() - b.float()).abs().max(), b.float().abs().max()
        assert error <= _TOLERANCE * scale, f"{choice}: off by {error:.3g}, and the largest number is {scale:.3g}"


def _tensors(result: Any) -> list[Tensor]:
    return [t for t in (result if isinstance(result, tuple) else (result,)) if t is not None]


def new_table(entries: choice_tables.Entries, device: torch.device) -> dict[str, Any]:
    """The shipped table with this GPU's architecture replaced."""
    how = f"`python -m bench.tune`, {tables.conditions(provenance.provenance(device))}"
    return choice_tables.measured(products.table(), str(architecture(torch.empty(0, device=device))), entries, how)
