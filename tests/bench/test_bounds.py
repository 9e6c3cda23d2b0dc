import json

import pytest

from bench.report import bounds

HOW = {"shape": "base", "dtype": "bfloat16", "device": "cuda", "tokens": 16384, "dropout": 0.1, "mode": "full"}


def row(op, provider, milliseconds, **changes):
    own = {"op": op, "provider": provider, "lengths": "128", "unit": "dense", "kept_share": 1.0}
    seconds = [1e-3 * milliseconds * factor for factor in (0.9, 1, 2)]  # the median counts
    return {"extra_info": HOW | own | {"seconds": seconds} | changes}


def step(lengths, seconds, **arguments):
    variants = {name: {"seconds": own} for name, own in seconds.items()}
    how = {"shape": "base", "lengths": lengths, "padding": "longest", "max_length": None, "dtype": "bfloat16"}
    batches = {"real_tokens": [100, 200]}
    return {"kind": "step", "arguments": how | arguments, "device": "cuda", "batches": batches, "variants": variants}


def lines(*contents):
    """Bound, measured, met and conditions by what is bounded."""
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in bounds.compared(contents).splitlines()]
    found = {}
    for what, *rest in table[2:]:
        found.setdefault(what, []).append(rest)
    return found


def test_nothing_is_measured():
    found = lines()
    assert len(found) == len(bounds.BOUNDS)
    assert all(rest == [["–", "not measured", "–", "–"]] for rest in found.values())


def test_masked_attention_is_compared_with_torchs_fastest():
    rows = [
        row("attention", "eager", 9), row("attention", "flash", 4), row("attention", "triton", 1),
        row("attention", "eager", 1, unit="masked"), row("attention", "reference", 1, unit="masked"),
        row("attention", "triton", 2.84, unit="masked", kept_share=2 / 3),
        row("attention", "triton", 9, unit="masked", lengths="512", kept_share=0.5),
        row("attention", "cudnn", 10, lengths="512"),
    ]  # fmt: skip
    found = lines({"benchmarks": rows})
    assert found["attention with some heads, 128 tokens, to all heads in torch"] == [
        ["at most 0.70", "0.710", "**no**", "triton / flash; 16384 tokens, bfloat16, cuda, 67% kept"]
    ]
    (line,) = found["attention with some heads, 512 tokens, to all heads in torch"]
    assert line[:3] == ["at most 0.53", "0.900", "**no**"]


def test_packed_attention_is_without_dropout():
    how = {"lengths": "sst2"}
    rows = [row("attention", "eager", 2, **how), row("attention", "triton", 1, **how)]
    assert lines({"benchmarks": rows})[bounds.BOUNDS[2].what][0][1] == "not measured"
    for own in rows:
        own["extra_info"]["dropout"] = 0.0
    assert lines({"benchmarks": rows})[bounds.BOUNDS[2].what][0][:3] == ["at most 0.60", "0.500", "yes"]


def test_feed_forward_and_norm():
    rows = [
        row("feed_forward", "eager", 10), row("feed_forward", "compile", 5),
        row("feed_forward", "triton", 6, unit="masked", kept_share=0.6),
        row("dropout_add_layer_norm", "triton", 1, floor_share=0.81),
        row("dropout_add_layer_norm", "cuda", 1, floor_share=0.7),
        row("dropout_add_layer_norm", "eager", 1, floor_share=0.3),
        row("dropout_add_layer_norm", "triton", 1, floor_share=0.8, mode="forward"),
    ]  # fmt: skip
    found = lines({"benchmarks": rows})
    assert found["feed-forward with some neurons, to all of them in eager"][0][:3] == ["at most 0.62", "0.600", "yes"]
    both = found["dropout + add + layer norm, share of the copy rate"]
    assert [line[:3] for line in both] == [["at least 0.80", "0.810", "yes"], ["at least 0.80", "0.700", "**no**"]]
    assert found["dropout + add + layer norm forward, share of the copy rate"][0][2] == "yes"


def test_other_sizes_are_not_compared():
    rows = [row("feed_forward", "eager", 10, shape="minilm"), row("feed_forward", "cpu", 6, unit="masked")]
    assert lines({"benchmarks": rows})[bounds.BOUNDS[3].what][0][1] == "not measured"
    small = step("full", {"converted": [1], "stock-compile": [2]}, shape="tiny")
    short = step("full", {"converted": [1], "stock-compile": [2]}, max_length=64)
    unpadded = step("sst2", {"converted": [1], "stock-compile": [2]})
    assert {line[0][1] for line in lines(small, short, unpadded).values()} == {"not measured"}


def test_steps_are_compared_round_by_round():
    full = {
        "stock-compile": [1.0, 10.0, 1.0], "converted": [0.8, 8.0, 0.9], "search": [0.8, 8.8, 0.9],
        "ticket-compact": [0.4, 4.8, 0.45], "converted-captured": [0.4, 4.0, 0.4],
        "ticket-compact-captured": [0.3, 3.2, 0.28],
    }  # fmt: skip
    padded = {"stock-compile": [1.0], "converted": [0.4], "converted-captured": [0.3]}
    found = lines(step("full", full), step("sst2", padded, padding="max_length"))
    ratios = {what: [(line[1], line[2]) for line in own] for what, own in found.items()}
    assert ratios["step, all 128 long, to stock compiled"] == [("0.800", "yes"), ("0.400", "yes")]
    assert ratios["step, compact to dense"] == [("0.500", "yes"), ("0.750", "**no**")]
    assert ratios["step, searching to dense"] == [("1.000", "yes")]
    assert ratios["step, SST-2's lengths, to stock padded to 128 and compiled"] == [
        ("0.400", "**no**"),
        ("0.300", "yes"),
    ]
    assert found["step, compact to dense"][0][3] == ("ticket-compact / converted; 150 real tokens, bfloat16, cuda")


def test_shares_of_the_matrix_rate_have_no_bound():
    content = step("full", {"stock": [1.0], "converted": [0.5]})
    content["variants"]["converted"]["matrix_rate_share"] = 0.45
    (line,) = lines(content)["step, all 128 long, share of the matrix rate"]
    assert line == ["–", "0.450", "–", "converted; 150 real tokens, bfloat16, cuda"]


def test_files_are_read(tmp_path, capsys):
    path = tmp_path / "step.json"
    path.write_text(json.dumps(step("full", {"converted": [1.0], "search": [1.02]})))
    bounds.main([str(path)])
    printed = capsys.readouterr().out
    assert "| step, searching to dense | at most 1.03 | 1.020 | yes |" in printed
    with pytest.raises(SystemExit):
        bounds.main(["--wrong"])
