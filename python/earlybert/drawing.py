"""Drawing tickets: which heads and neurons stay, given how much each is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from earlybert_kernels import Ticket

from .errors import MissingFileError, UsageError

Scope = Literal["layer", "global"]
SCOPES = ("layer", "global")


def draw(
    head_scores: Sequence[torch.Tensor],
    neuron_scores: Sequence[torch.Tensor],
    *,
    head_ratio: float = 1 / 3,
    neuron_ratio: float = 0.4,
    head_scope: Scope = "layer",
    neuron_scope: Scope = "global",
    multiple_of: int = 1,
) -> Ticket:
    """Keeps the heads and neurons with the largest |score|.

    The defaults are EarlyBERT's for BERT-base (arXiv 2101.00063, section 3.2): a third of the heads of each
    layer and 40% of all neurons go.

    A ratio drops exactly `ratio * count` units, rounded to the nearest whole number, and where two are
    equally near down, so that the unit in doubt stays. The ratio is taken as it is written in decimal: 0.1 of
    5 is exactly 0.5 and drops none, 1/3 of 12 drops 4. Of equal scores the unit of the lower layer, then of
    the lower index, is kept first. Every layer keeps at least one head and one neuron; with scope "global"
    the units that a layer keeps for this reason are made up for in other layers, so that the total stays
    exact wherever it can be.

    With `multiple_of` = m > 1 the total of kept neurons is rounded to the nearest multiple of m (halves up).
    Each layer gets its width divided by m, rounded down; the blocks of m that are then left go to the layers
    with the largest remainders, the lower layer first. A layer has at least one block and no more than fit
    its neurons.

    Args:
        head_scores: per layer `(heads,)`, any float type.
        neuron_scores: per layer `(neurons,)`.
        head_ratio: share of the heads to drop, 0 <= ratio < 1.
        neuron_ratio: share of the neurons to drop, 0 <= ratio < 1.
        head_scope: "layer" ranks within each layer, "global" across all layers.
        neuron_scope: the same for neurons.
        multiple_of: keep a multiple of this many neurons in every layer; 1 for any number.

    Raises:
        UsageError: (a ValueError) a ratio or scope is not one of the above, a score is not finite, the layers
            do not match, or `multiple_of` exceeds the neurons of a layer.
    """
    heads = _check_scores("head_scores", head_scores)
    neurons = _check_scores("neuron_scores", neuron_scores)
    if len(heads) != len(neurons):
        raise UsageError(f"expected as many layers of head_scores ({len(heads)}) as of neuron_scores ({len(neurons)})")
    head_widths = _widths(heads, _check_ratio("head_ratio", head_ratio), _check_scope("head_scope", head_scope))
    neuron_widths = _widths(
        neurons, _check_ratio("neuron_ratio", neuron_ratio), _check_scope("neuron_scope", neuron_scope)
    )
    neuron_widths = _round_widths(neuron_widths, [len(scores) for scores in neurons], multiple_of)
    return Ticket(_keep_best(heads, head_widths), _keep_best(neurons, neuron_widths))


def random_ticket(
    ticket: Ticket, num_heads: Sequence[int], num_neurons: Sequence[int], generator: torch.Generator
) -> Ticket:
    """A ticket of the same widths in every layer as `ticket`, with units chosen uniformly at random.

    Args:
        ticket: gives the widths.
        num_heads: heads per layer of the dense model.
        num_neurons: neurons per layer of the dense model.
        generator: a CPU generator; its seed decides the ticket.
    """

    def choose(kept: Sequence[Sequence[int]], counts: Sequence[int]) -> list[list[int]]:
        return [
            sorted(torch.randperm(count, generator=generator)[: len(units)].tolist())
            for units, count in zip(kept, counts, strict=True)
        ]

    return Ticket(choose(ticket.heads, num_heads), choose(ticket.neurons, num_neurons))


def inverted_ticket(
    ticket: Ticket, head_scores: Sequence[torch.Tensor], neuron_scores: Sequence[torch.Tensor]
) -> Ticket:
    """A ticket of the same widths in every layer as `ticket`, with the units of the smallest |score|.

    Of equal scores the higher index is kept first: the reverse of the order in which `draw` keeps units.

    Args:
        ticket: gives the widths.
        head_scores: per layer `(heads,)`, as given to `draw`.
        neuron_scores: per layer `(neurons,)`.
    """

    def keep_worst(kept: Sequence[Sequence[int]], scores: list[torch.Tensor]) -> list[list[int]]:
        return [
            sorted(_best_first(layer)[len(layer) - len(units) :].tolist())
            for units, layer in zip(kept, scores, strict=True)
        ]

    return Ticket(
        keep_worst(ticket.heads, _check_scores("head_scores", head_scores)),
        keep_worst(ticket.neurons, _check_scores("neuron_scores", neuron_scores)),
    )


def _check_scores(name: str, scores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """|scores| as float64 on the CPU."""
    checked = []
    for index, layer in enumerate(scores):
        if layer.dim() != 1 or len(layer) == 0:
            raise UsageError(f"{name}, layer {index}: expected one score per unit, found shape {tuple(layer.shape)}")
        values = layer.detach().to("cpu", torch.float64).abs()
        if not values.isfinite().all():
            raise UsageError(f"{name}, layer {index}: expected finite scores, found {layer.tolist()[:8]}...")
        checked.append(values)
    if not checked:
        raise UsageError(f"{name}: expected at least one layer, found none")
    return checked


def _check_ratio(name: str, ratio: float) -> Fraction:
    if not 0 <= ratio < 1:
        raise UsageError(f"{name}: expected a share 0 <= {name} < 1 of the units to drop, found {ratio}")
    # Through the decimal text: the float nearest to 0.1 is a little more than 0.1, and half of a unit more is
    # a unit.
    return Fraction(repr(float(ratio)))


def _check_scope(name: str, scope: Scope) -> Scope:
    if scope not in SCOPES:
        raise UsageError(f"{name}: expected one of {', '.join(SCOPES)}, found {scope!r}")
    return scope


def _best_first(scores: torch.Tensor) -> torch.Tensor:
    """Indices by falling score; equal scores in order of their index."""
    return torch.sort(scores, descending=True, stable=True).indices


def _kept(count: int, ratio: Fraction) -> int:
    """How many of `count` units stay: all but `ratio * count`, which is rounded half down."""
    return count - math.ceil(ratio * count - Fraction(1, 2))


def _widths(scores: list[torch.Tensor], ratio: Fraction, scope: Scope) -> list[int]:
    """How many units each layer keeps."""
    if scope == "layer":
        return [max(1, _kept(len(layer), ratio)) for layer in scores]
    # The best unit of every layer stays; the others compete for what is left.
    best = [int(_best_first(layer)[0]) for layer in scores]
    layers = torch.cat([torch.full((len(layer),), index) for index, layer in enumerate(scores)])
    rivals = torch.cat([torch.arange(len(layer)) != best[index] for index, layer in enumerate(scores)])
    left = max(0, _kept(len(layers), ratio) - len(scores))
    winners = layers[rivals][_best_first(torch.cat(scores)[rivals])[:left]]
    return (1 + torch.bincount(winners, minlength=len(scores))).tolist()


def _round_widths(widths: list[int], counts: list[int], multiple_of: int) -> list[int]:
    """Widths as multiples of `multiple_of` (see `draw`), each at most the layer's count of units."""
    if multiple_of == 1:
        return widths
    if multiple_of < 1:
        raise UsageError(f"multiple_of: expected at least 1, found {multiple_of}")
    if multiple_of > min(counts):
        layer = counts.index(min(counts))
        raise UsageError(f"multiple_of: {multiple_of} is more than the {counts[layer]} neurons of layer {layer}")
    most = [count // multiple_of for count in counts]
    blocks = [max(1, width // multiple_of) for width in widths]
    target = (2 * sum(widths) + multiple_of) // (2 * multiple_of)
    target = min(max(target, len(widths)), sum(most))

    def remainder(layer: int) -> int:
        return widths[layer] - blocks[layer] * multiple_of

    layers = range(len(widths))
    while sum(blocks) < target:
        # max and min return the first of equals: the lower layer is served first and pays last.
        layer = max((i for i in layers if blocks[i] < most[i]), key=remainder)
        blocks[layer] += 1
    while sum(blocks) > target:
        layer = min((i for i in reversed(layers) if blocks[i] > 1), key=remainder)
        blocks[layer] -= 1
    return [block * multiple_of for block in blocks]


def _keep_best(scores: list[torch.Tensor], widths: list[int]) -> list[list[int]]:
    return [sorted(_best_first(layer)[:width].tolist()) for layer, width in zip(scores, widths, strict=True)]


def read_gates(path: Path) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The gates that a search ended with, as `draw` takes them.

    Args:
        path: a run's folder, or the `gates.safetensors` in it.

    Returns:
        Head gates and neuron gates, layer by layer.

    Raises:
        MissingFileError: there is no such file.
        UsageError: the file does not hold gates.
    """
    if path.is_dir():
        path = path / "gates.safetensors"
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; expected the gates that `earlybert finetune` writes")
    try:
        gates = load_file(path)
    except SafetensorError as error:
        raise UsageError(f"{path}: expected a safetensors file, found {error}") from None
    layers = range(len(gates) // 2)
    names = [[f"{kind}.{layer}" for layer in layers] for kind in ("head_gates", "neuron_gates")]
    if not layers or set(gates) != {*names[0], *names[1]}:
        raise UsageError(
            f"{path}: expected head_gates.0, neuron_gates.0 and so on, found {', '.join(gates) or 'nothing'}"
        )
    return [gates[name] for name in names[0]], [gates[name] for name in names[1]]
