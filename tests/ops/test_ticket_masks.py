"""Which units a ticket keeps: against Python's sorting, and every backend against the definition."""

from __future__ import annotations

import math
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import earlybert_kernels as ek
from tests.helpers.targets import targets_of

TARGETS = pytest.mark.parametrize("target", targets_of("ticket_masks"), ids=lambda target: target.backend)
# Few distinct values, so that ties are the rule.
LAYER = st.lists(st.sampled_from([-2.0, -1.0, -0.5, 0.0, -0.0, 0.5, 1.0, math.inf, math.nan]), min_size=1, max_size=40)


def masks(target, layers, keep, dtype=torch.float32, **options):
    """The op's mask as a list a layer."""
    scores = [torch.as_tensor(layer, dtype=dtype).to(target.device) for layer in layers]
    mask = ek.ops.ticket_masks(scores, keep, **options, backend=target.backend)
    assert mask.dtype == torch.bool and mask.device == scores[0].device
    return [layer.tolist() for layer in mask.cpu().split([len(layer) for layer in layers])]


def by_sorting(layers, keep):
    """What the op's docstring says, by sorting all units."""

    def rank(unit):
        layer, index = unit
        score = abs(layers[layer][index])
        return (not math.isnan(score), -score if score == score else 0.0, layer, index)

    units = [[(number, index) for index in range(len(layer))] for number, layer in enumerate(layers)]
    if isinstance(keep, int):
        best = [min(layer, key=rank) for layer in units]
        others = sorted((unit for layer in units for unit in layer if unit not in best), key=rank)
        kept = {*best, *others[: keep - len(layers)]}
    else:
        kept = {unit for layer, width in zip(units, keep, strict=True) for unit in sorted(layer, key=rank)[:width]}
    return [[unit in kept for unit in layer] for layer in units]


@TARGETS
@settings(deadline=None, max_examples=40)
@given(st.data())
def test_the_largest_stay_in_order(target, data):
    layers = data.draw(st.lists(LAYER, min_size=1, max_size=5))
    counts = list(map(len, layers))
    keep = data.draw(
        st.one_of(st.integers(len(counts), sum(counts)), st.tuples(*(st.integers(1, count) for count in counts)))
    )
    assert masks(target, layers, keep) == by_sorting(layers, keep)


@TARGETS
@settings(deadline=None, max_examples=40)
@given(st.data())
def test_widths_are_rounded_as_defined(target, data):
    layers = data.draw(st.lists(LAYER, min_size=1, max_size=6))
    counts = list(map(len, layers))
    multiple_of = data.draw(st.integers(1, min(counts)))
    keep = data.draw(
        st.one_of(st.integers(len(counts), sum(counts)), st.tuples(*(st.integers(1, count) for count in counts)))
    )
    free, found = by_sorting(layers, keep), masks(target, layers, keep, multiple_of=multiple_of)
    wanted, widths = list(map(sum, free)), list(map(sum, found))
    assert all(width % multiple_of == 0 and width >= multiple_of for width in widths)
    total = (2 * sum(wanted) + multiple_of) // (2 * multiple_of)
    assert sum(widths) == multiple_of * min(max(total, len(counts)), sum(count // multiple_of for count in counts))
    assert found == by_sorting(layers, widths), "the best of each layer, whatever the others do"
    scores = [torch.tensor(layer) for layer in layers]
    defined = ek.ops.ticket_masks(scores, keep, multiple_of=multiple_of, backend="reference")
    assert defined.tolist() == list(chain(*found))


@TARGETS
def test_more_units_than_a_block_has_threads(target):
    generator = torch.Generator().manual_seed(0)
    layers = [1 + 0.01 * torch.randn(count, generator=generator) for count in (1843, 4096, 1, 1024, 2049)]
    layers = [layer.round(decimals=3).tolist() for layer in layers]  # hundreds of each value
    for keep in (5, 6, 4321, 9013, [1, 4096, 1, 500, 2048]):
        assert masks(target, layers, keep) == by_sorting(layers, keep)


@TARGETS
def test_largest_remainders_win_and_the_lower_layer_pays_last(target):
    # 7 + 6 + 5 + 6 = 24 are kept, six blocks of 4: remainders 3, 2, 1, 2 for the two left over.
    layers = [[1.0] * width + [0.0] * (8 - width) for width in (7, 6, 5, 6)]
    assert list(map(sum, masks(target, layers, 24, multiple_of=4))) == [8, 8, 4, 4]
    # A block each is more than is kept: then the total is what it has to be.
    layers = [[9.0] * 10, [1.0] * 10, [1.0] * 10]
    assert list(map(sum, masks(target, layers, 12, multiple_of=5))) == [5, 5, 5]
    layers = [[9.0] * 12, [1.0] * 12, [8.0] * 12]
    assert list(map(sum, masks(target, layers, 25, multiple_of=5))) == [10, 5, 10]


@TARGETS
def test_as_many_layers_as_there_may_be(target):
    scores = torch.randint(0, 5, (64, 7)).float().unbind()
    for keep, multiple_of in ((64, 1), (200, 1), (200, 3), (448, 7), (100, 5)):
        found = masks(target, scores, keep, multiple_of=multiple_of)
        defined = ek.ops.ticket_masks(scores, keep, multiple_of=multiple_of, backend="reference")
        assert list(chain(*found)) == defined.tolist()


@TARGETS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_views(target, dtype):
    wide = torch.randn(3, 90, dtype=dtype, device=target.device)
    scores = [wide[0, ::2], wide[1, 1:], wide[2, 3:60:3].requires_grad_()]
    layers = [layer.detach().float().tolist() for layer in scores]
    mask = ek.ops.ticket_masks(scores, 61, backend=target.backend)
    assert mask.tolist() == list(chain(*by_sorting(layers, 61))) and not mask.requires_grad


@TARGETS
def test_the_mask_is_written_whole(target, monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: empty(*shape, **options).fill_(1))
    layers = [[float(unit % 7) for unit in range(count)] for count in (3, 1100, 17)]
    for keep in (600, [1, 600, 16]):
        assert masks(target, layers, keep) == by_sorting(layers, keep)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_finds_what_the_scores_are_by_then():
    if "cuda" not in ek.ops.backends("ticket_masks"):
        pytest.skip(f"cuda: {ek.ops.dispatch.unavailable('ticket_masks')['cuda']}")
    scores = [torch.rand(count, device="cuda") for count in (12, 4096, 77)]
    ek.ops.ticket_masks(scores, 900, multiple_of=4, backend="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mask = ek.ops.ticket_masks(scores, 900, multiple_of=4, backend="cuda")
        distance = ek.ops.ticket_distance(mask, ~mask, backend="cuda")
    for seed in range(3):
        torch.manual_seed(seed)
        for layer in scores:
            layer.normal_()
        graph.replay()
        defined = ek.ops.ticket_masks(scores, 900, multiple_of=4, backend="reference")
        assert torch.equal(mask, defined) and distance.item() == 1.0


def test_double_precision_and_more_layers_take_plain_pytorch():
    close = [1.0, 1.0 + 1e-12]
    assert ek.ops.ticket_masks([torch.tensor(close, dtype=torch.float64)], [1]).tolist() == [False, True]
    many = [torch.tensor(close)] * 65
    assert ek.ops.ticket_masks(many, 65).tolist() == [True, False] * 65
    if "cuda" in ek.ops.backends("ticket_masks"):
        with pytest.raises(RuntimeError, match="it takes up to 64 layers, got 65"):
            ek.ops.ticket_masks(many, 65, backend="cuda")


def test_a_backend_forced_for_the_process_does_not_bind():
    """It is for the model's ops, and the programs that train one draw all the same."""
    scores = [torch.tensor([1.0, 2.0])]
    for backend in ("cuda", "triton", "cpu", "reference"):
        with ek.use_backend(backend):
            assert ek.ops.ticket_masks([scores[0].double()], [1]).tolist() == [False, True]
            assert ek.ops.ticket_masks(scores, [1]).tolist() == [False, True]
    with pytest.raises(RuntimeError, match="ticket_masks: backend 'cpu' was asked for but cannot run this call"):
        ek.ops.ticket_masks(scores, [1], backend="cpu")


def test_mistakes_are_named():
    scores = [torch.ones(3), torch.ones(4)]
    for wrong, message in (
        (([], 1), "there are no scores"),
        (([torch.ones(2, 2)], 1), r"scores of layer 0 has shape .2, 2., expected .units,."),
        (([torch.ones(3), torch.ones(0)], 2), "layer 1 has no units"),
        (([torch.ones(3), torch.ones(3, device="meta")], 2), "scores are on cpu and on meta, expected one device"),
        ((scores, 1), r"keep is 1, expected 2 .one a layer. to 7 .all."),
        ((scores, 8), "keep is 8"),
        ((scores, [3]), r"keep is .3., expected for each layer 1 to all of its units: .3, 4."),
        ((scores, [0, 4]), r"keep is .0, 4."),
        ((scores, [4, 4]), r"keep is .4, 4."),
    ):
        with pytest.raises(ValueError, match=f"ticket_masks: {message}"):
            ek.ops.ticket_masks(*wrong)
    for multiple_of in (0, 4):
        with pytest.raises(ValueError, match=f"multiple_of is {multiple_of}, expected 1 to the smallest layer's 3"):
            ek.ops.ticket_masks(scores, 5, multiple_of=multiple_of)
    with pytest.raises(TypeError, match="scores of layer 0 are torch.int64, expected a floating dtype"):
        ek.ops.ticket_masks([torch.ones(3).long()], [1])
