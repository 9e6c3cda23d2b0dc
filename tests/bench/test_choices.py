"""The table of backends, from results as `pytest bench/ --benchmark-json` writes them."""

import json

import pytest

from bench.tune import choices
from earlybert_kernels.ops import choices as shipped_choices
from earlybert_kernels.ops import dispatch

RATIOS = {"eager": 1.0, "compile": 0.8, "reference": 1.2, "triton": 0.3, "cuda": 0.4}


@pytest.fixture(autouse=True)
def _both_backends(monkeypatch):
    """The ops of these results have kernels of either kind, whatever was built."""
    for op in ("attention", "feed_forward", "optimizer_step"):
        for backend in ("cuda", "triton"):
            monkeypatch.setitem(dispatch._implementations[op], backend, dispatch._implementations[op]["reference"])


def rows_of(op, sizes, ratios=RATIOS, **changes):
    machine = {"cpu": "a processor", "gpu": "a GPU", "architecture": "sm_90"}
    return [
        {
            "op": op, "shape": "base", "lengths": str(size), "unit": "dense", "mode": "full", "dtype": "bfloat16",
            "device": "cuda", "sequences": 4, "dropout": 0.1, "provider": provider, "tokens": 4 * size,
            "sequence_lengths": [size] * 4, "errors": {"output": 1e-3}, "ratio": {"median": ratio},
            "machine": machine, "versions": {"torch": "2.13.0"}, "commit": "0123abc",
        } | changes
        for size in sizes
        for provider, ratio in ratios.items()
    ]  # fmt: skip


def made(tmp_path, *files):
    """What the program writes for files of such rows."""
    paths = []
    for number, rows in enumerate(files):
        paths.append(tmp_path / f"ops-{number}.json")
        paths[-1].write_text(json.dumps({"benchmarks": [{"extra_info": row} for row in rows]}))
    choices.main([*map(str, paths), "--output", str(tmp_path / "choices.json")])
    return json.loads((tmp_path / "choices.json").read_text())


def test_the_fastest_comes_first_from_where_its_size_is_nearer(tmp_path, monkeypatch):
    slow = RATIOS | {"triton": 2.0}
    attention = [*rows_of("attention", [128]), *rows_of("attention", [512, 1024], slow)]
    table = made(tmp_path, attention, rows_of("feed_forward", [128], slow))
    own = table["architectures"]["90"]
    assert [(entry["from"], entry["order"]) for entry in own["attention"]] == [
        (0, ["triton", "cuda", "reference"]),
        (256, ["cuda", "reference", "triton"]),
    ]
    assert own["attention"][1]["reason"] == (
        "measured: at 512, of eager's time: cuda 0.400, compile 0.800, eager 1.000, reference 1.200, triton 2.000; "
        "at 1024, of eager's time: cuda 0.400, compile 0.800, eager 1.000, reference 1.200, triton 2.000"
    )
    (entry,) = own["feed_forward"]
    assert entry["from"] == 0 and entry["reason"].startswith("measured: at 512, ")
    # The rest is as it was, and all of it is a table that the dispatcher takes.
    shipped = shipped_choices.table()
    assert table["architectures"]["80"] == shipped["architectures"]["80"]
    assert own["masked_lm_loss"] == shipped["architectures"]["80"]["masked_lm_loss"]
    assert table["note"].startswith("90: measured by `python -m bench.tune.choices`, cpu a processor, gpu a GPU")
    monkeypatch.setattr(shipped_choices, "table", lambda: table)
    shipped_choices.orders.cache_clear()
    try:
        assert shipped_choices.orders("attention", 100)[1] == (256, ("cuda", "reference", "triton"))
    finally:
        shipped_choices.orders.cache_clear()


def test_rows_of_one_size_count_together(tmp_path):
    rows = [
        *rows_of("attention", [128], RATIOS | {"triton": 0.1, "cuda": 0.2}),
        *rows_of("attention", [128], {"triton": 0.7, "cuda": 0.4, "reference": 1.0}, dropout=0.0),
    ]
    (entry,) = made(tmp_path, rows)["architectures"]["90"]["attention"]
    assert entry["order"] == ["cuda", "triton", "reference"] and "triton 0.400" in entry["reason"]


def test_an_optimizers_baseline_is_plain_pytorch(tmp_path):
    ratios = {"eager": 1.0, "cuda": 0.1, "triton": 2.0}
    changes = {"mode": "step", "dtype": "float32", "lengths": None}
    (entry,) = made(tmp_path, rows_of("lamb", [1], ratios, **changes))["architectures"]["90"]["optimizer_step"]
    assert entry["order"] == ["cuda", "reference", "triton"]


def test_other_rows_do_not_count(tmp_path):
    rows = [
        *rows_of("attention", [128]),
        *rows_of("attention", [512], unit="masked"),
        *rows_of("attention", [512], mode="forward"),
        *rows_of("attention", [512], dtype="float32"),
        *rows_of("adamw", [512]),
    ]
    own = made(tmp_path, rows, [])["architectures"]["90"]
    assert len(own["attention"]) == 1 and "adamw" not in own
    assert own["optimizer_step"] == shipped_choices.table()["architectures"]["80"]["optimizer_step"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no row is of a dense op"),
        (rows_of("attention", [128], device="cpu"), "attention: measured on device cpu, and the table is of GPUs"),
        (rows_of("attention", [128], machine={"gpu": "a GPU"}), "do not say the GPU's architecture; measure anew"),
        (
            [*rows_of("attention", [128]), *rows_of("feed_forward", [128], machine={"architecture": "sm_80"})],
            "several architectures: 80, 90",
        ),
        (rows_of("attention", [128], {"eager": 1.0, "triton": 0.3}), "size 128: no row of cuda, reference, which was"),
        (rows_of("attention", [128], errors={}), "the row of eager does not say that its results are right"),
        (rows_of("attention", [128], errors={"output": float("nan")}), "does not say that its results are right"),
    ],
)
def test_what_proves_nothing_is_refused(tmp_path, capsys, rows, message):
    with pytest.raises(SystemExit):
        made(tmp_path, rows)
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "choices.json").exists()
