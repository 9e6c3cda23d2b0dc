"""The search for tiles, at toy sizes by Triton's interpreter where there is no GPU."""

import json

import pytest
import torch

from bench.provenance import pick_device
from bench.tune import choice_tables
from bench.tune import products as tune
from earlybert_kernels.backends import triton

if triton.unavailable() is not None:
    pytest.skip(f"triton: {triton.unavailable()}", allow_module_level=True)

from earlybert_kernels.backends.triton import products
from earlybert_kernels.backends.triton.matmul import Tile

LAYER = tune.Layer(hidden=16, neurons=32)
SMALL, LARGE = Tile(16, 16, 16, 4, 1), Tile(32, 32, 16, 4, 1)


def test_a_sweep_makes_a_table_that_products_take(monkeypatch, capsys):
    device = pick_device()
    entries = tune.sweep(LAYER, (16,), (SMALL, LARGE), (1, 2), device)
    table = tune.new_table(entries, device)
    assert json.loads(choice_tables.as_text(table)) == table
    assert set(products.table()["architectures"]) <= set(table["architectures"])
    monkeypatch.setattr(products, "table", lambda: table)
    for kind in products.KINDS:
        for tokens in (1, 31, 32, 1000):
            _, tile, parts = products.choice(kind, torch.empty(1, dtype=torch.bfloat16, device=device), tokens)
            assert tile in (SMALL, LARGE) and parts in (1, 2)
    assert capsys.readouterr().out.count("tokens: library") == len(products.KINDS)


def times(monkeypatch, seconds):
    """Lets `_seconds` say what a function of kind, tokens, library, tile and parts says."""
    monkeypatch.setattr(tune, "_seconds", lambda kind, layer, tokens, device, choice: seconds(kind, tokens, *choice))


def test_the_fastest_is_taken_from_where_it_is_nearer(monkeypatch):
    def seconds(kind, tokens, library, tile, parts):
        if library:
            return 4.0
        return {512: 5, 4096: 3, 16384: 3}[tokens] + (tile != (SMALL if tokens == 512 else LARGE)) + (parts != 2)

    times(monkeypatch, seconds)
    found = tune.sweep(LAYER, tune.TOKENS, (SMALL, LARGE), (1, 2), torch.device("cpu"))
    assert found["forward"] == [
        {"from_tokens": 0, "run": "library", "tile": [16, 16, 16, 4, 1]},
        {"from_tokens": 1448, "run": "library", "tile": [32, 32, 16, 4, 1]},
    ]
    assert found["grad_weight"] == [
        {"from_tokens": 0, "run": "library", "tile": [16, 16, 16, 4, 1], "parts": 2},
        {"from_tokens": 1448, "run": "triton", "tile": [32, 32, 16, 4, 1], "parts": 2},
    ]


def test_a_tile_that_there_is_no_room_for_is_not_taken(monkeypatch):
    from triton.runtime.errors import OutOfResources

    def no_room(*arguments, **options):
        raise OutOfResources(300_000, 232_448, "shared memory")

    monkeypatch.setattr(products, "matmul", no_room)
    assert tune._seconds("forward", LAYER, 16, pick_device(), (False, SMALL, 1)) == float("inf")


def test_a_tile_with_wrong_results_is_an_error(monkeypatch):
    multiply = products.matmul
    monkeypatch.setattr(products, "matmul", lambda *a, **o: (multiply(*a, **o)[0] * 1.1, None))
    with pytest.raises(AssertionError, match="off by"):
        tune._seconds("forward", LAYER, 16, pick_device(), (False, SMALL, 1))


def test_the_products_of_a_layer():
    counts = {kind: len(tune.calls(kind, LAYER, 16, pick_device())) for kind in products.KINDS}
    expected = {"forward": 3, "forward_activation": 1, "grad_input": 3, "grad_input_activation": 1, "grad_weight": 4}
    assert counts == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_there_is_nothing_to_measure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tune, "INTERPRETED", False)
    with pytest.raises(SystemExit):
        tune.main(["--output", str(tmp_path / "products.json")])
    assert "torch sees none" in capsys.readouterr().err
