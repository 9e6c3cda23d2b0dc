"""Results as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..summary import quartiles

NONE = "–"

Result = dict[str, Any]


def conditions(result: Result) -> str:
    """One line on what a result was measured with: machine, versions, commit."""
    parts = [f"{name} {value}" for name, value in (*result["machine"].items(), *result["versions"].items())]
    return f"{', '.join(parts)}, commit {result['commit']}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, ending in a line feed."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _spread(values: dict[str, float] | None, digits: int, factor: float = 1.0) -> str:
    """`median (q1-q3)`."""
    if values is None:
        return NONE
    low, middle, high = (f"{factor * values[key]:.{digits}f}" for key in ("q1", "median", "q3"))
    return f"{middle} ({low}-{high})"


def _number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


# Microbenchmarks: one row is the `extra_info` of one of pytest-benchmark's.

#: What rows have in common that compute the same.
_PROBLEM = ("op", "shape", "lengths", "unit", "mode", "dtype", "device", "sequences", "dropout")


def problem_of(row: Result) -> tuple:
    """Equal for rows that differ in nothing but the provider."""
    return tuple(row.get(key) for key in _PROBLEM)


def of_fastest_torch(rows: Sequence[Result]) -> list[float | None]:
    """Per row, the median ratio to the faster of eager and compile; None where compile was not measured."""
    compiled = {problem_of(row): row["ratio"]["median"] for row in rows if row["provider"] == "compile"}
    found = []
    for row in rows:
        ratio = compiled.get(problem_of(row))
        found.append(None if ratio is None else row["ratio"]["median"] / min(1.0, ratio))
    return found


def micro(rows: Sequence[Result]) -> str:
    """The table of the microbenchmarks of one op."""
    header = [
        "shape", "lengths", "unit", "mode", "provider", "ms, median (quartiles)", "of eager (quartiles)",
        "of the faster of eager and compile", "GFLOP/s", "GB/s", "roofline",
    ]  # fmt: skip
    lines = [
        [
            row["shape"],
            row["lengths"] or NONE,
            row["unit"],
            row["mode"],
            row["provider"],
            _spread(quartiles(row["seconds"]), 4, 1e3),
            _spread(row["ratio"], 2),
            _number(fastest, 2),
            _number(row["gflops_per_second"], 1),
            _number(row["gbytes_per_second"], 1),
            f"{100 * row['floor_share']:.0f}%",
        ]
        for row, fastest in zip(rows, of_fastest_torch(rows), strict=True)
    ]
    return table(header, lines)


def step(result: Result) -> str:
    """Conditions and table of `bench.step`."""
    arguments, batches = result["arguments"], result["batches"]
    rounds = len(batches["real_tokens"])
    real, padded = (sum(batches[key]) / rounds for key in ("real_tokens", "padded_tokens"))
    with_memory = any("memory" in variant for variant in result["variants"].values())
    header = ["step", "ms, median (quartiles)", "of stock (quartiles)", "of converted (quartiles)", "real tokens/s"]
    with_share = "rates" in result  # older results have none
    rows = []
    for name, variant in result["variants"].items():
        cells = [name, _spread(variant["time"], 2, 1e3)]
        cells += [_spread(variant["of_stock"], 3), _spread(variant["of_converted"], 3)]
        cells.append(f"{variant['real_tokens_per_second']:,.0f}")
        if with_share:
            share = variant.get("matrix_rate_share")
            cells.append(NONE if share is None else f"{100 * share:.0f}%")
        if with_memory:
            peak = variant.get("memory", {}).get("peak_bytes")
            cells.append(NONE if peak is None else f"{peak / 2**20:,.0f}")
        rows.append(cells)
    return (
        f"{_workload(arguments)}: "
        f"{real:.0f} real of {padded:.0f} tokens on average, {rounds} rounds.\n"
        f"{conditions(result)}\n\n"
        + table(header + ["of the matrix rate"] * with_share + ["peak MiB"] * with_memory, rows)
    )


def forward(result: Result) -> str:
    """Conditions and table of `bench.forward`."""
    batches, rounds = result["batches"], len(result["batches"]["real_tokens"])
    real, padded = (sum(batches[key]) / rounds for key in ("real_tokens", "padded_tokens"))
    threads = result["threads"]
    rows = [
        [name, _spread(each["time"], 2, 1e3), _spread(each["of_stock"], 3), _spread(each["of_onnx_runtime"], 3)]
        for name, each in result["variants"].items()
    ]
    header = ["forward", "ms, median (quartiles)", "of stock (quartiles)", "of ONNX Runtime (quartiles)"]
    return (
        f"{_workload(result['arguments'])}: {real:.0f} real of {padded:.0f} tokens on average, {rounds} rounds, "
        f"{threads} thread{'s' * (threads > 1)}.\n{conditions(result)}\n\n" + table(header, rows)
    )


def _workload(arguments: dict[str, Any]) -> str:
    what = arguments["model"] or f"shape {arguments['shape']}, {arguments.get('model_type') or 'bert'}"
    data = "random tokens" if arguments["data_dir"] is None else "real sentences"
    return (
        f"{what}, lengths {arguments['lengths']} ({data}), padding {arguments['padding']}, {arguments['dtype']}, "
        f"batch {arguments['batch_size']}"
    )


def end_to_end(result: Result) -> str:
    """Conditions, table and verdicts of `bench.end_to_end`, as docs/results.md shows them."""
    comparison = result["comparison"]
    has_stock = any(row["seconds_over_stock_dense"] is not None for row in comparison["rows"])
    kernels = {"off": "stock transformers", "auto": "this library"}
    rows = []
    for row in comparison["rows"]:
        seconds, spread = row["seconds"], row["quality_std"]
        whole = f"{seconds['total']:.0f}"
        if seconds["search"]:
            whole = f"{seconds['search']:.0f} + {seconds['train']:.0f} = {whole}"
        rows.append(
            [
                f"{kernels[row['kernels']]}, {row['method']}",
                f"{row['quality']:.4f}" + ("" if spread is None else f" ± {spread:.4f}"),
                whole,
                *([_number(row["seconds_over_stock_dense"], 2)] if has_stock else []),
                f"{row['parameters'] / 1e6:.1f} M",
            ]
        )
    seeds = ", ".join(map(str, comparison["rows"][0]["seeds"]))
    of_stock = ["of stock dense"] if has_stock else []
    header = ["", comparison["metric"], "seconds (search + train)", *of_stock, "parameters"]
    # Files of earlier versions have no warnings.
    sentences = [*comparison["verdicts"], *filter(None, [comparison["noise"]]), *comparison.get("warnings", [])]
    return (
        f"Task {comparison['task']}, model {comparison['model']}, seeds {seeds}: mean and standard deviation of the "
        f"quality, medians of the seconds.\n{conditions(result)}\n\n"
        + table(header, rows)
        + "".join(f"\n{sentence}\n" for sentence in sentences)
    )


def trainer(result: Result, baselines: dict[str, str]) -> str:
    """Conditions and table of `bench.trainer`: seconds, and of whose in the same round they are which part."""
    rows = [
        [
            name,
            _spread(quartiles(seconds), 1),
            "" if name not in baselines else f"{_spread(result['ratio'][name], 3)} of {baselines[name]}",
        ]
        for name, seconds in result["seconds"].items()
    ]
    rounds = len(next(iter(result["seconds"].values())))
    return (
        f"{result['model']}, {result['steps']} steps with batches of {result['batch_size']}, {rounds} rounds, medians "
        f"and quartiles.\n{conditions(result)}\n\n" + table(["", "seconds of training", "ratio"], rows)
    )
