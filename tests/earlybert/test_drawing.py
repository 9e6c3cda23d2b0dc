from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from earlybert import draw
from earlybert.errors import UsageError
from earlybert.run_directory import RunDirectory
from earlybert.search.drawing import draw_masks, inverted_ticket, random_ticket, read_gates, to_masks, to_ticket
from earlybert_kernels import use_backend
from tests.helpers.targets import targets_of

RATIOS = st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.4, 0.5, 2 / 3, 0.75, 0.9, 0.99])
# Few distinct values, so that ties are the rule.
LAYER = st.lists(st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=12)
SCOPES = st.sampled_from(["layer", "global"])


def tensors(layers: list[list[float]]) -> list[torch.Tensor]:
    return [torch.tensor(layer) for layer in layers]


def kept_exactly(count: int, ratio: float) -> int:
    dropped = Fraction(repr(ratio)) * count
    down = math.floor(dropped)
    return count - (down + (dropped - down > Fraction(1, 2)))


@settings(deadline=None, max_examples=200)
@given(st.lists(LAYER, min_size=1, max_size=5), RATIOS, RATIOS, SCOPES, SCOPES)
def test_keeps_as_many_as_asked_and_the_best(
    layers: list[list[float]], head_ratio: float, neuron_ratio: float, head_scope: str, neuron_scope: str
) -> None:
    scores = tensors(layers)
    ticket = draw(
        scores,
        scores,
        head_ratio=head_ratio,
        neuron_ratio=neuron_ratio,
        head_scope=head_scope,
        neuron_scope=neuron_scope,
    )
    for kept, ratio, scope in (
        (ticket.heads, head_ratio, head_scope),
        (ticket.neurons, neuron_ratio, neuron_scope),
    ):
        assert all(kept), "every layer keeps a unit"
        if scope == "layer":
            assert [len(units) for units in kept] == [max(1, kept_exactly(len(x), ratio)) for x in layers]
        else:
            assert sum(map(len, kept)) == max(len(layers), kept_exactly(sum(map(len, layers)), ratio))
        check_best(layers, kept, scope)


@pytest.mark.parametrize("target", targets_of("ticket_masks"), ids=lambda target: target.backend)
@settings(deadline=None, max_examples=30)
@given(st.lists(LAYER, min_size=1, max_size=5), RATIOS, SCOPES, st.data())
def test_masks_are_those_of_the_ticket(target, layers: list[list[float]], ratio: float, scope: str, data) -> None:
    scores = tensors(layers)
    counts = [len(layer) for layer in layers]
    options = {
        "head_ratio": ratio,
        "neuron_ratio": ratio,
        "head_scope": scope,
        "neuron_scope": scope,
        "multiple_of": data.draw(st.integers(1, min(counts))),
    }
    ticket = draw(scores, scores, **options)
    with use_backend(target.backend):
        masks = draw_masks(*[[layer.to(target.device) for layer in scores]] * 2, **options)
    assert all(mask.device.type == target.device for mask in masks)
    assert to_ticket(masks, counts, counts) == ticket
    again = to_masks(ticket, counts, counts)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(again, masks, strict=True))


def check_best(layers: list[list[float]], kept: list[list[int]], scope: str) -> None:
    """No dropped unit comes before a kept one of its rivals, ties counted by layer and index."""

    def rank(layer: int, unit: int) -> tuple:
        return (-abs(layers[layer][unit]), layer, unit)

    for layer, units in enumerate(kept):
        dropped = [rank(layer, unit) for unit in range(len(layers[layer])) if unit not in units]
        assert max(rank(layer, unit) for unit in units) < min(dropped, default=(math.inf,))
    if scope == "global":
        # The best unit of a layer stays whatever it is worth; all others had to win their place.
        winners = [rank(i, u) for i, units in enumerate(kept) for u in units]
        protected = {min(rank(i, u) for u in range(len(layers[i]))) for i in range(len(layers))}
        losers = [rank(i, u) for i in range(len(layers)) for u in range(len(layers[i])) if u not in kept[i]]
        assert max((w for w in winners if w not in protected), default=(-math.inf,)) < min(losers, default=(math.inf,))


def test_the_papers_ticket() -> None:
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(12, generator=generator) for _ in range(12)]
    neurons = [torch.randn(3072, generator=generator) for _ in range(12)]
    ticket = draw(heads, neurons)
    assert [len(units) for units in ticket.heads] == [8] * 12
    assert sum(map(len, ticket.neurons)) == 36_864 - round(0.4 * 36_864)


@pytest.mark.parametrize(
    ("count", "ratio", "dropped"),
    [(12, 1 / 3, 4), (5, 0.1, 0), (15, 0.1, 1), (5, 0.3, 1), (2, 0.25, 0), (6, 0.25, 1), (3, 0.5, 1), (10, 0.0, 0)],
)
def test_halves_are_rounded_down(count: int, ratio: float, dropped: int) -> None:
    scores = [torch.arange(count) + 1.0]
    assert len(draw(scores, scores, head_ratio=ratio).heads[0]) == count - dropped


def test_a_ratio_of_zero_drops_nothing_and_equal_scores_neither() -> None:
    ticket = draw([torch.ones(4)] * 2, [torch.ones(6)] * 2, head_ratio=0.0, neuron_ratio=0.0)
    assert ticket.heads == [[0, 1, 2, 3]] * 2
    assert ticket.neurons == [list(range(6))] * 2


def test_ties_keep_lower_layers_and_indices_first() -> None:
    ticket = draw([torch.ones(4)] * 2, [torch.ones(4)] * 2, head_ratio=0.5, neuron_ratio=0.5)
    assert ticket.heads == [[0, 1], [0, 1]]
    assert ticket.neurons == [[0, 1, 2], [0]]


def test_a_layer_without_a_winner_keeps_its_best_and_the_total_is_exact() -> None:
    ticket = draw(
        [torch.ones(2)] * 2,
        [torch.tensor([5.0, 6.0, -7.0, 8.0]), torch.tensor([0.1, -0.3, 0.2, 0.0])],
        neuron_ratio=0.5,
    )
    assert ticket.neurons == [[1, 2, 3], [1]]


def test_sign_does_not_matter_and_gates_may_be_parameters() -> None:
    heads = [torch.nn.Parameter(torch.tensor([-3.0, 1.0, 2.0]))]
    assert draw(heads, heads).heads == [[0, 2]]


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan")])
def test_refuses_ratios_outside_the_range(ratio: float) -> None:
    scores = [torch.ones(4)]
    with pytest.raises(ValueError, match="head_ratio: expected a share 0 <= head_ratio < 1"):
        draw(scores, scores, head_ratio=ratio)
    with pytest.raises(ValueError, match="neuron_ratio: expected"):
        draw(scores, scores, neuron_ratio=ratio)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_scores_that_are_not_finite_naming_the_layer(value: float) -> None:
    good, bad = torch.ones(4), torch.tensor([1.0, value])
    with pytest.raises(ValueError, match="neuron_scores, layer 1: expected finite scores"):
        draw([good, good], [good, bad])


def test_masks_take_scores_that_are_not_finite() -> None:
    """To notice them, they would have to be read back; a ticket is not drawn from them."""
    bad = [torch.tensor([1.0, float("nan"), 2.0, float("inf")])]
    masks = draw_masks(bad, bad, head_ratio=0.5, neuron_ratio=0.5)
    assert masks.heads.tolist() == masks.neurons.tolist() == [False, True, False, True]


def test_mixed_widths_are_half_way_between_those_of_the_other_scopes() -> None:
    scores = [
        torch.tensor([9.0, 8, 7, 6, 5]),
        torch.tensor([4.0, 3, 2.5, 2, 1]),
        torch.tensor([3.5, 0.4, 0.3, 0.2, 0.1]),
    ]
    options = {"neuron_ratio": 0.4, "head_ratio": 0.0}
    widths = {
        scope: [len(kept) for kept in draw(scores, scores, neuron_scope=scope, **options).neurons]
        for scope in ("layer", "global", "mixed")
    }
    assert widths == {"layer": [3, 3, 3], "global": [5, 3, 1], "mixed": [4, 3, 2]}
    ticket = draw(scores, scores, neuron_scope="mixed", head_scope="mixed", neuron_ratio=0.5, head_ratio=0.5)
    # By layer 3 of each, by all 8: 5, 2 and 1. The halves go up until there are 8.
    assert [len(kept) for kept in ticket.neurons] == [4, 2, 2]
    assert ticket.heads == ticket.neurons == [[0, 1, 2, 3], [0, 1], [0, 1]]


def test_refuses_other_nonsense() -> None:
    scores = [torch.ones(4)]
    with pytest.raises(ValueError, match="as many layers of head_scores .1. as of neuron_scores .2."):
        draw(scores, scores * 2)
    with pytest.raises(ValueError, match="at least one layer"):
        draw([], [])
    with pytest.raises(ValueError, match=r"layer 0: expected one score per unit, found shape \(2, 2\)"):
        draw([torch.ones(2, 2)], scores)
    with pytest.raises(ValueError, match="neuron_scope: expected one of layer, global, mixed, found 'model'"):
        draw(scores, scores, neuron_scope="model")
    with pytest.raises(ValueError, match="multiple_of: expected at least 1, found 0"):
        draw(scores, scores, multiple_of=0)
    with pytest.raises(ValueError, match="multiple_of: 8 is more than the 4 neurons of layer 0"):
        draw(scores, scores, multiple_of=8)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.integers(4, 40), min_size=1, max_size=6), RATIOS, SCOPES, st.sampled_from([2, 3, 4]), st.integers(0, 9)
)
def test_widths_are_multiples_and_the_budget_is_kept(
    counts: list[int], ratio: float, scope: str, multiple: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.rand(count, generator=generator) for count in counts]
    free = draw(scores, scores, neuron_ratio=ratio, neuron_scope=scope)
    ticket = draw(scores, scores, neuron_ratio=ratio, neuron_scope=scope, multiple_of=multiple)
    widths, wanted = [len(u) for u in ticket.neurons], [len(u) for u in free.neurons]
    most = [count // multiple * multiple for count in counts]
    assert all(width % multiple == 0 and multiple <= width <= high for width, high in zip(widths, most, strict=True))
    lowest, highest = multiple * len(counts), sum(most)
    nearest = min(max(sum(wanted), lowest), highest)
    assert abs(sum(widths) - nearest) <= multiple / 2 or sum(widths) in (lowest, highest)
    if all(want >= multiple for want in wanted) and all(want <= high for want, high in zip(wanted, most, strict=True)):
        assert all(abs(width - want) < multiple for width, want in zip(widths, wanted, strict=True))
    check_best([layer.tolist() for layer in scores], ticket.neurons, "layer")


def test_largest_remainders_win() -> None:
    # 7 + 6 + 5 + 6 = 24 neurons are kept, six blocks of 4: remainders 3, 2, 1, 2 for the two left over.
    scores = [torch.full((8,), 1.0) for _ in range(4)]
    for layer, width in zip(scores, (7, 6, 5, 6), strict=True):
        layer[width:] = 0
    ticket = draw(scores, scores, neuron_ratio=0.25, multiple_of=4)
    assert [len(units) for units in ticket.neurons] == [8, 8, 4, 4]


def test_random_tickets_have_the_widths_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(30, generator=generator) for _ in range(4)]
    heads = [torch.rand(6, generator=generator) for _ in range(4)]
    drawn = draw(heads, scores)
    sizes = ([6] * 4, [30] * 4)
    first = random_ticket(drawn, *sizes, torch.Generator().manual_seed(1))
    assert first == random_ticket(drawn, *sizes, torch.Generator().manual_seed(1))
    assert first != random_ticket(drawn, *sizes, torch.Generator().manual_seed(2))
    for name in ("heads", "neurons"):
        assert [len(u) for u in getattr(first, name)] == [len(u) for u in getattr(drawn, name)]
    apart = [
        random_ticket(drawn, *sizes, torch.Generator().manual_seed(seed)).distance(drawn, of="neurons")
        for seed in range(50)
    ]
    assert sum(apart) / 50 == pytest.approx(0.4, abs=0.03)


def test_inverted_tickets_keep_the_worst() -> None:
    heads, neurons = [torch.tensor([1.0, -4.0, 2.0])], [torch.tensor([0.5, 0.1, -0.9, 0.2, 0.7])]
    drawn = draw(heads, neurons)
    inverted = inverted_ticket(drawn, heads, neurons)
    assert drawn.heads == [[1, 2]]
    assert inverted.heads == [[0, 2]]
    assert drawn.neurons == [[0, 2, 4]]
    assert inverted.neurons == [[0, 1, 3]]


def test_an_inverted_ticket_shares_least_with_the_drawn_one() -> None:
    ones = [torch.ones(10)] * 3
    drawn = draw(ones, ones, neuron_ratio=0.5, neuron_scope="layer", head_ratio=0.5)
    assert drawn.distance(inverted_ticket(drawn, ones, ones)) == 1.0


def test_gates_are_read_in_order_of_layers(tmp_path: Path) -> None:
    heads = [torch.full((2,), float(layer)) for layer in range(12)]
    neurons = [torch.full((3,), float(layer)) for layer in range(12)]
    path = tmp_path / "gates.safetensors"
    save_file(
        {f"head_gates.{i}": g for i, g in enumerate(heads)} | {f"neuron_gates.{i}": g for i, g in enumerate(neurons)},
        path,
    )
    for source in (path, tmp_path):
        read = read_gates(source)
        assert [g.tolist() for g in read[0]] == [g.tolist() for g in heads]
        assert [g.tolist() for g in read[1]] == [g.tolist() for g in neurons]


def gates_file(path: Path, heads: int, neurons: int) -> Path:
    gates = {f"head_gates.{i}": torch.ones(heads) for i in range(2)}
    save_file(gates | {f"neuron_gates.{i}": torch.ones(neurons) for i in range(2)}, path)
    return path


def test_what_the_run_warned_of_is_said_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gates_file(tmp_path / "gates.safetensors", 4, 6)
    ticket = {"heads_of": [4, 4], "neurons_of": [6, 6]}
    metrics = {"method": "earlybert", "search": None, "ticket": ticket, "warnings": ["search: the loss ended at 9"]}
    RunDirectory(tmp_path).finish(metrics)
    read_gates(tmp_path)
    assert caplog.messages == [f"{tmp_path}: search: the loss ended at 9"]


def test_gates_that_are_cut_are_refused(tmp_path: Path) -> None:
    path = gates_file(tmp_path / "gates.safetensors", 1, 1)
    with pytest.raises(UsageError, match="expected a gate for every neuron, found one a layer"):
        read_gates(path)
    ticket = {"heads_of": [4, 4], "neurons_of": [6, 6]}
    (tmp_path / "metrics.json").write_text(json.dumps({"method": "earlybert", "search": None, "ticket": ticket}))
    read_gates(gates_file(path, 4, 6))
    for heads, neurons in ((3, 6), (4, 5)):
        gates_file(path, heads, neurons)
        for source in (path, tmp_path):
            with pytest.raises(UsageError, match=r"each of the \[4, 4\] heads and \[6, 6\] neurons of the run's model"):
                read_gates(source)


def test_refuses_files_that_are_not_gates(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gates.safetensors: no such file"):
        read_gates(tmp_path)
    path = tmp_path / "gates.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(UsageError, match="expected a safetensors file"):
        read_gates(path)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(UsageError, match="expected head_gates.0"):
        read_gates(path)


def test_tickets_say_of_which_model_they_are() -> None:
    heads, neurons = [torch.rand(4), torch.rand(3)], [torch.rand(9), torch.rand(7)]
    drawn = draw(heads, neurons)
    generator = torch.Generator().manual_seed(0)
    for ticket in (drawn, random_ticket(drawn, [4, 3], [9, 7], generator), inverted_ticket(drawn, heads, neurons)):
        assert (ticket.heads_of, ticket.neurons_of) == ([4, 3], [9, 7])
