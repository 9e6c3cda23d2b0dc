"""Drawing tickets: which heads and neurons stay, given how much each is worth."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import earlybert_kernels as ek
from earlybert_kernels import Ticket
from earlybert_kernels.reference.ticket_masks import best_first

from ..arguments import SCOPES
from ..errors import MissingFileError, UsageError
from ..run_directory import RunDirectory

logger = logging.getLogger(__name__)

Scope = Literal["layer", "global", "mixed"]


class Masks(NamedTuple):
    """The units that a ticket keeps, True where one stays: bool, of all layers one after the other.

    Attributes:
        heads: `(heads of all layers,)`.
        neurons: `(neurons of all layers,)`.
    """

    heads: torch.Tensor
    neurons: torch.Tensor


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

    With `multiple_of` = m > 1 every layer keeps a multiple of m neurons, the total being rounded to the nearest
    multiple of m: `earlybert_kernels.ops.ticket_masks` says how.

    Args:
        head_scores: per layer `(heads,)`, any float type.
        neuron_scores: per layer `(neurons,)`.
        head_ratio: share of the heads to drop, 0 <= ratio < 1.
        neuron_ratio: share of the neurons to drop, 0 <= ratio < 1.
        head_scope: "layer" ranks within each layer, "global" across all layers. With "mixed" each layer keeps the mean
            of what it would keep by both, odd halves going to lower layers first, so that the total is that of
            "global" but for the rounding of "layer".
        neuron_scope: the same for neurons.
        multiple_of: keep a multiple of this many neurons in every layer; 1 for any number.

    Raises:
        UsageError: (a ValueError) a ratio or scope is not one of the above, a score is not finite, the layers
            do not match, or `multiple_of` exceeds the neurons of a layer.
    """
    heads = _check_scores("head_scores", head_scores)
    neurons = _check_scores("neuron_scores", neuron_scores)
    masks = draw_masks(
        heads,
        neurons,
        head_ratio=head_ratio,
        neuron_ratio=neuron_ratio,
        head_scope=head_scope,
        neuron_scope=neuron_scope,
        multiple_of=multiple_of,
    )
    return to_ticket(masks, [len(layer) for layer in heads], [len(layer) for layer in neurons])


def draw_masks(
    head_scores: Sequence[torch.Tensor],
    neuron_scores: Sequence[torch.Tensor],
    *,
    head_ratio: float = 1 / 3,
    neuron_ratio: float = 0.4,
    head_scope: Scope = "layer",
    neuron_scope: Scope = "global",
    multiple_of: int = 1,
) -> Masks:
    """What `draw` keeps, as masks on the device of the scores; with the CUDA extension no score is read back.

    So it does not notice scores that are not finite: NaN counts as larger than all numbers.

    Args:
        See `draw`.

    Raises:
        UsageError: as `draw`, but for scores that are not finite.
    """
    if len(head_scores) != len(neuron_scores):
        raise UsageError(
            f"expected as many layers of head_scores ({len(head_scores)}) as of neuron_scores ({len(neuron_scores)})"
        )
    heads = _keep(head_scores, _check_ratio("head_ratio", head_ratio), _check_scope("head_scope", head_scope))
    neurons = _keep(
        neuron_scores, _check_ratio("neuron_ratio", neuron_ratio), _check_scope("neuron_scope", neuron_scope)
    )
    multiple_of = _check_multiple_of(multiple_of, neuron_scores)
    return Masks(
        ek.ops.ticket_masks(head_scores, heads),
        ek.ops.ticket_masks(neuron_scores, neurons, multiple_of=multiple_of),
    )


def to_ticket(masks: Masks, num_heads: Sequence[int], num_neurons: Sequence[int]) -> Ticket:
    """The ticket of these masks.

    Args:
        masks: on any device.
        num_heads: heads per layer of the dense model.
        num_neurons: neurons per layer of the dense model.
    """

    def units(mask: torch.Tensor, counts: Sequence[int]) -> list[list[int]]:
        return [layer.nonzero().flatten().tolist() for layer in mask.cpu().split(list(counts))]

    kept = units(masks.heads, num_heads), units(masks.neurons, num_neurons)
    return Ticket(*kept, heads_of=num_heads, neurons_of=num_neurons)


def to_masks(ticket: Ticket, num_heads: Sequence[int], num_neurons: Sequence[int]) -> Masks:
    """The masks of a ticket, on the CPU; the arguments are those of `to_ticket`."""

    def mask(kept: Sequence[Sequence[int]], counts: Sequence[int]) -> torch.Tensor:
        layers = [torch.zeros(count, dtype=torch.bool) for count in counts]
        for layer, units in zip(layers, kept, strict=True):
            layer[units] = True
        return torch.cat(layers)

    return Masks(mask(ticket.heads, num_heads), mask(ticket.neurons, num_neurons))


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

    kept = choose(ticket.heads, num_heads), choose(ticket.neurons, num_neurons)
    return Ticket(*kept, heads_of=num_heads, neurons_of=num_neurons)


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
            sorted(best_first(layer)[len(layer) - len(units) :].tolist())
            for units, layer in zip(kept, scores, strict=True)
        ]

    heads, neurons = _check_scores("head_scores", head_scores), _check_scores("neuron_scores", neuron_scores)
    return Ticket(
        keep_worst(ticket.heads, heads),
        keep_worst(ticket.neurons, neurons),
        heads_of=map(len, heads),
        neurons_of=map(len, neurons),
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
    return _as_written(ratio)


def _as_written(ratio: float) -> Fraction:
    # Through the decimal text: the float nearest to 0.1 is a little more than 0.1, and half of a unit more is
    # a unit.
    return Fraction(repr(float(ratio)))


def _check_scope(name: str, scope: Scope) -> Scope:
    if scope not in SCOPES:
        raise UsageError(f"{name}: expected one of {', '.join(SCOPES)}, found {scope!r}")
    return scope


def kept_count(count: int, ratio: float) -> int:
    """How many of `count` units stay where a share of them is dropped, as `draw` rounds it."""
    return _kept(count, _as_written(ratio))


def _kept(count: int, ratio: Fraction) -> int:
    """How many of `count` units stay: all but `ratio * count`, which is rounded half down."""
    return count - math.ceil(ratio * count - Fraction(1, 2))


def _keep(scores: Sequence[torch.Tensor], ratio: Fraction, scope: Scope) -> int | list[int]:
    """How many units stay, at least one a layer: of all layers together, or of each; "mixed" waits for a GPU."""
    by_layer = [max(1, _kept(len(layer), ratio)) for layer in scores]
    total = max(len(scores), _kept(sum(map(len, scores)), ratio))
    if scope == "mixed":
        masks = ek.ops.ticket_masks(scores, total).split([len(layer) for layer in scores])
        globally = torch.stack([mask.sum() for mask in masks]).tolist()
        twice = [sum(both) for both in zip(by_layer, globally, strict=True)]
        odd = [layer for layer, both in enumerate(twice) if both % 2]
        up = odd[: max(0, total - sum(both // 2 for both in twice))]
        return [both // 2 + (layer in up) for layer, both in enumerate(twice)]
    return by_layer if scope == "layer" else total


def _check_multiple_of(multiple_of: int, scores: Sequence[torch.Tensor]) -> int:
    if multiple_of < 1:
        raise UsageError(f"multiple_of: expected at least 1, found {multiple_of}")
    counts = [len(layer) for layer in scores]
    if multiple_of > min(counts):
        layer = counts.index(min(counts))
        raise UsageError(f"multiple_of: {multiple_of} is more than the {counts[layer]} neurons of layer {layer}")
    return multiple_of


def gates_by_name(head_gates: Sequence[torch.Tensor], neuron_gates: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gates as `gates.safetensors` holds them, for `read_gates`: `head_gates.0` and so on, on the CPU."""
    names = (("head_gates", head_gates), ("neuron_gates", neuron_gates))
    return {f"{name}.{i}": gate.detach().cpu() for name, layers in names for i, gate in enumerate(layers)}


def read_gates(path: Path) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The gates that a search ended with, as `draw` takes them. What the run warned of is logged again.

    Args:
        path: a run's folder, or the `gates.safetensors` in it.

    Returns:
        Head gates and neuron gates, layer by layer.

    Raises:
        MissingFileError: there is no such file.
        UsageError: the file does not hold gates, or not those of all units of the run's model.
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
    read = [gates[name] for name in names[0]], [gates[name] for name in names[1]]
    found = tuple([gate.numel() for gate in kind] for kind in read)
    run = RunDirectory(path.parent)
    if path == run.gates:
        run.check_read(run.gates, run.metrics)
    metrics = run.read_metrics() if run.is_finished else {}
    ticket = metrics.get("ticket")
    if ticket is not None and found != (ticket["heads_of"], ticket["neurons_of"]):
        raise UsageError(
            f"{path}: expected a gate for each of the {ticket['heads_of']} heads and {ticket['neurons_of']} neurons of "
            f"the run's model, found {found[0]} and {found[1]}"
        )
    if set(found[1]) == {1}:
        raise UsageError(f"{path}: expected a gate for every neuron, found one a layer, of which none can be dropped")
    for warning in metrics.get("warnings", []):
        logger.warning("%s: %s", path.parent, warning)
    return read
