"""What kernels and steps are to reach on a GPU, next to what was measured.

    python -m bench.report.bounds RESULTS.json [...]

Takes what `pytest bench/ --benchmark-json=FILE` and `python -m bench.step` write, of BERT-base, and prints a Markdown
table: one line for every bound and every file that has what it needs, or "not measured". A bound is an upper one on a
ratio of times, or a lower one on a share of what the machine can do.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earlybert.files import read_json

from ..ops.cases import TORCH_PROVIDERS, VARLEN
from ..step.variants import COMPILED, CONVERTED, UNPADDED, UNPADDED_COMPILED
from ..summary import paired_ratio
from .tables import NONE, Result, table

#: What was measured, the bound, and with what.
Finding = tuple[float, float | None, str]


@dataclass(frozen=True)
class Bound:
    """One bound.

    Attributes:
        what: is bounded.
        find: all there is on it in one file's content.
        at_least: whether the measured number has to reach the bound, and not to stay below it.
    """

    what: str
    find: Callable[[dict[str, Any]], Iterator[Finding]]
    at_least: bool = False


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the arguments, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULTS.json")
    args = parser.parse_args(argv)
    print(compared([read_json(path) for path in args.results]))


def compared(contents: Sequence[dict[str, Any]]) -> str:
    """The table, of the contents of files."""
    lines = []
    for bound in BOUNDS:
        found = [finding for content in contents for finding in bound.find(content)]
        for measured, limit, where in found:
            verdict = NONE
            if limit is not None:
                verdict = "yes" if (measured >= limit if bound.at_least else measured <= limit) else "**no**"
            lines.append([bound.what, _limit(limit, bound), f"{measured:.3f}", verdict, where])
        if not found:
            lines.append([bound.what, NONE, "not measured", NONE, NONE])
    return table(["", "bound", "measured", "met", "with"], lines)


def _limit(limit: float | None, bound: Bound) -> str:
    if limit is None:
        return NONE
    return f"at {'least' if bound.at_least else 'most'} {limit:.2f}"


_PADDED = tuple(name for name in TORCH_PROVIDERS if name not in VARLEN)

# Microbenchmarks. Rows of different units have no baseline in common: what is compared are their medians.


def _rows(content: dict[str, Any], op: str, mode: str, mix: str, dropout: float | None = None) -> list[Result]:
    rows = [benchmark["extra_info"] for benchmark in content.get("benchmarks", [])]
    return [
        row
        for row in rows
        if (row["op"], row["mode"], row["lengths"], row["shape"]) == (op, mode, mix, "base")
        and (dropout is None or row["dropout"] == dropout)
    ]


def _ours(rows: Sequence[Result], unit: str) -> Iterator[Result]:
    """Those of compiled backends: what is not torch, nor the definition in plain PyTorch."""
    plain = (*TORCH_PROVIDERS, "reference")
    yield from (row for row in rows if row["unit"] == unit and row["provider"] not in plain)


def _fastest_dense(rows: Sequence[Result], providers: Sequence[str] = TORCH_PROVIDERS) -> Result | None:
    own = [row for row in rows if row["unit"] == "dense" and row["provider"] in providers]
    return min(own, key=_median, default=None)


def _median(row: Result) -> float:
    return statistics.median(row["seconds"])


def _with(row: Result, *others: Result) -> str:
    names = " / ".join(r["provider"] for r in (row, *others))
    return f"{names}; {row['tokens']} tokens, {row['dtype']}, {row['device']}"


def _masked_attention(mix: str) -> Callable[[dict[str, Any]], Iterator[Finding]]:
    def find(content: dict[str, Any]) -> Iterator[Finding]:
        rows = _rows(content, "attention", "full", mix)
        base = _fastest_dense(rows)
        for row in _ours(rows, "masked") if base else ():
            kept = f", {100 * row['kept_share']:.0f}% kept"
            yield _median(row) / _median(base), 1.05 * row["kept_share"], _with(row, base) + kept

    return find


def _packed_attention(
    peers: Sequence[str], limit: float | None, dropout: float | None = None
) -> Callable[[dict[str, Any]], Iterator[Finding]]:
    def find(content: dict[str, Any]) -> Iterator[Finding]:
        rows = _rows(content, "attention", "full", "sst2", dropout=dropout)
        base = _fastest_dense(rows, peers)
        for row in _ours(rows, "dense") if base else ():
            yield _median(row) / _median(base), limit, f"{_with(row, base)}, dropout {row['dropout']}"

    return find


def _masked_feed_forward(content: dict[str, Any]) -> Iterator[Finding]:
    rows = _rows(content, "feed_forward", "full", "128")
    base = _fastest_dense(rows, ("eager",))
    for row in _ours(rows, "masked") if base else ():
        kept = f", {100 * row['kept_share']:.0f}% kept"
        yield _median(row) / _median(base), 0.62, _with(row, base) + kept


def _copy_share(mode: str) -> Callable[[dict[str, Any]], Iterator[Finding]]:
    def find(content: dict[str, Any]) -> Iterator[Finding]:
        for row in _ours(_rows(content, "dropout_add_layer_norm", mode, "128"), "dense"):
            yield row["floor_share"], 0.8, _with(row)

    return find


# Steps. Both of a ratio were measured in the same rounds.


def _steps(content: dict[str, Any], lengths: str) -> dict[str, Any]:
    """The variants of a file that has steps of BERT-base on such batches, all padded to 128 tokens."""
    if content.get("kind") != "step":
        return {}
    arguments = content["arguments"]
    padded = lengths == "full" or arguments["padding"] == "max_length"
    is_such = (arguments["shape"], arguments["lengths"]) == ("base", lengths) and padded
    return content["variants"] if is_such and (arguments["max_length"] or 128) == 128 else {}


def _conditions(content: dict[str, Any]) -> str:
    tokens = content["batches"]["real_tokens"]
    return f"{sum(tokens) / len(tokens):.0f} real tokens, {content['arguments']['dtype']}, {content['device']}"


def _step_ratio(lengths: str, own: str, base: str, limit: float) -> Callable[[dict[str, Any]], Iterator[Finding]]:
    """Of `own`'s step to `base`'s; and of the captured one's, to the captured one's if `base` is one of ours."""

    def find(content: dict[str, Any]) -> Iterator[Finding]:
        variants = _steps(content, lengths)
        captured = f"{base}-captured" if base == CONVERTED else base
        for mine, theirs in ((own, base), (f"{own}-captured", captured)):
            if mine in variants and theirs in variants:
                ratio = paired_ratio(variants[mine]["seconds"], variants[theirs]["seconds"])
                yield ratio["median"], limit, f"{mine} / {theirs}; {_conditions(content)}"

    return find


def _unpadded_step(lengths: str) -> Callable[[dict[str, Any]], Iterator[Finding]]:
    """Of ours, captured or not, to the stock model without padding, compiled or not."""

    def find(content: dict[str, Any]) -> Iterator[Finding]:
        variants = _steps(content, lengths)
        for mine, theirs in itertools.product((CONVERTED, f"{CONVERTED}-captured"), (UNPADDED, UNPADDED_COMPILED)):
            if mine in variants and theirs in variants:
                ratio = paired_ratio(variants[mine]["seconds"], variants[theirs]["seconds"])
                yield ratio["median"], None, f"{mine} / {theirs}; {_conditions(content)}"

    return find


def _matrix_share(content: dict[str, Any]) -> Iterator[Finding]:
    for name, variant in _steps(content, "full").items():
        if "matrix_rate_share" in variant:
            yield variant["matrix_rate_share"], None, f"{name}; {_conditions(content)}"


BOUNDS = (
    Bound("attention with some heads, 128 tokens, to all heads in torch", _masked_attention("128")),
    Bound("attention with some heads, 512 tokens, to all heads in torch", _masked_attention("512")),
    Bound("attention packed, SST-2's lengths, no dropout, to torch padded", _packed_attention(_PADDED, 0.6, 0.0)),
    Bound("attention packed, SST-2's lengths, to torch packed", _packed_attention(VARLEN, None)),
    Bound("feed-forward with some neurons, to all of them in eager", _masked_feed_forward),
    Bound("dropout + add + layer norm forward, share of the copy rate", _copy_share("forward"), at_least=True),
    Bound("dropout + add + layer norm, share of the copy rate", _copy_share("full"), at_least=True),
    Bound("step, SST-2's lengths, to stock padded to 128 and compiled", _step_ratio("sst2", CONVERTED, COMPILED, 0.35)),
    Bound("step, SST-2's lengths, to stock unpadded", _unpadded_step("sst2")),
    Bound("step, all 128 long, to stock unpadded", _unpadded_step("full")),
    Bound("step, all 128 long, to stock compiled", _step_ratio("full", CONVERTED, COMPILED, 0.85)),
    Bound("step, compact to dense", _step_ratio("full", "ticket-compact", CONVERTED, 0.66)),
    Bound("step, searching to dense", _step_ratio("full", "search", CONVERTED, 1.03)),
    Bound("step, all 128 long, share of the matrix rate", _matrix_share, at_least=True),
)


if __name__ == "__main__":
    main()
