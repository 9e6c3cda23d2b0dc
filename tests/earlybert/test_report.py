"""The page on a run, a comparison or a study: what it says, and how a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from earlybert import FinetuneArguments, Study, compare, report, study
from earlybert.cli import main
from earlybert.errors import MissingFileError, UsageError
from earlybert.files import read_json
from earlybert.programs.summary import verdict
from earlybert.run_directory import RunDirectory

#: Pixels: a phone, and a desk.
WIDTHS = (360, 1200)


@pytest.fixture(scope="module")
def template(tiny_bert: str, toy_sst2: str) -> dict[str, Any]:
    return {
        "model": tiny_bert, "task": "sst2", "data_dir": toy_sst2, "device": "cpu", "batch_size": 8, "max_length": 16,
        "max_steps": 3, "search_steps": 4, "early_bird_interval": 1, "logging_steps": 1,
    }  # fmt: skip


@pytest.fixture(scope="module")
def studied(template: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study; do not change it."""
    root = tmp_path_factory.mktemp("study")
    changes = {"dense": {"method": "dense"}, "<paper>": {}, "other": {"ticket_weights": "folded", "score": "fisher"}}
    arms = {name: FinetuneArguments(output_dir="", **template, **change) for name, change in changes.items()}
    study(Study(str(root), {"one": arms, "two": arms}, [1, 2, 3], "dense"))
    report(str(root))
    return root


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [given[name] or "" for name in ("src", "href", "xlink:href", "srcset", "data") if name in given]
        if tag not in ("meta", "line", "circle", "path", "use", "rect", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_needs_nothing_else_and_says_what_the_results_say(studied: Path) -> None:
    page = Page(studied / "report.html")
    assert page.open == [], "every element is closed"
    assert "script" not in page.tags and all(link.startswith("#") for link in page.links)
    assert len(page.ids) == len({*page.ids})
    assert {link[1:] for link in page.links} <= {*page.ids}
    results = read_json(studied / "results.json")
    text = " ".join(page.text.split())
    assert verdict(results["tables"], "dense") in text
    for rows in results["tables"].values():
        for row in rows:
            assert row["arm"] in text and f"{row['quality']:.4f} ± {row['quality_error']:.4f}" in text
    assert page.tags.count("circle") == len(results["runs"]) == 18
    for part in ("Quality against seconds", "Loss while training", "seconds of search and training", "accuracy",
                 "heads kept, % of each layer's", "Where the seconds went", "The search of <paper>", "drawn (",
                 "ticket_weights", "folded", results["runs"][0]["versions"]["torch"]):  # fmt: skip
        assert part in text, part


def test_the_pages_of_a_run_and_of_a_comparison(template: dict[str, Any], studied: Path, tmp_path: Path) -> None:
    folder = next(studied.glob("runs/*-earlybert-*"))
    run = shutil.copytree(folder, tmp_path / "run")
    assert main(["report", str(run)]) == 0
    metrics = read_json(run / "metrics.json")
    assert f"accuracy {metrics['eval']['accuracy']:.4f} after" in Page(run / "report.html").text
    assert "kept (dark)" in Page(run / "report.html").text
    RunDirectory(run).check_sums()

    arguments = FinetuneArguments(output_dir=str(tmp_path / "compared"), **template)
    found = compare(arguments, [("dense", "auto"), ("random", "auto")], [1])
    assert "dense-auto" in Page(report(str(tmp_path / "compared"))).text
    assert found["noise"] in " ".join(Page(tmp_path / "compared" / "report.html").text.split())


def test_folders_without_runs_and_changed_ones_are_refused(studied: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="expected the folder of a finished run, a comparison or a study"):
        report(str(tmp_path))
    changed = shutil.copytree(studied, tmp_path / "changed")
    metrics = next(changed.glob("runs/*-dense-*")) / "metrics.json"
    metrics.write_text(metrics.read_text().replace('"accuracy"', '"luck"'))
    with pytest.raises(UsageError, match="not as the run wrote it"):
        report(str(changed))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_browser_shows_it(studied: Path, tmp_path: Path, width: int, scheme: str) -> None:
    seen = shown(studied / "report.html", tmp_path, width, scheme)
    assert seen["viewport"] == width and seen["scroll"] <= width, "nothing is beside the screen"
    assert seen["figures"] and all(0 < each["width"] <= width and each["height"] > 100 for each in seen["figures"])
    assert seen["smallest"] >= 6, "pixels, of the texts of pictures"
    page, ink = (sum(map(int, re.findall(r"\d+", seen[name])[:3])) / 3 for name in ("page", "ink"))
    assert (page > 250 and ink < 50) if scheme == "light" else (page < 50 and ink > 200)
    assert seen["pictureInk"] == seen["ink"], "pictures have the page's ink"
    assert seen["overlaps"] == [], "no text of an axis lies on another"


#: What is measured in the page, and told the frame's owner.
PROBE = """
<script>
addEventListener("load", () => {
  const style = getComputedStyle(document.body), box = each => each.getBoundingClientRect();
  const overlaps = [];
  for (const figure of document.querySelectorAll("figure svg")) {
    const texts = [...figure.querySelectorAll("text")];
    texts.forEach((text, index) => texts.slice(index + 1).forEach(other => {
      const [a, b] = [box(text), box(other)];
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 2 && high > 4) overlaps.push([text.textContent, other.textContent]);
    }));
  }
  const texts = [...document.querySelectorAll("figure text")];
  const found = {
    viewport: innerWidth, scroll: document.documentElement.scrollWidth, overlaps,
    figures: [...document.querySelectorAll("figure svg")].map(box).map(({width, height}) => ({width, height})),
    smallest: Math.min(...texts.map(each => box(each).height)),
    page: style.backgroundColor, ink: style.color,
    pictureInk: getComputedStyle(texts[0]).fill,
  };
  parent.postMessage(JSON.stringify(found), "*");
});
</script>
"""
#: A window of a browser has a smallest width, a frame in it has none.
FRAME = """<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<script>addEventListener("message", event => document.getElementById("found").textContent = event.data);</script>
<pre id="found"></pre><iframe src="probed.html" style="border: 0; width: WIDTHpx; height: 900px"></iframe>
"""


def shown(page: Path, folder: Path, width: int, scheme: str) -> dict[str, Any]:
    """What a real browser makes of a page, in a window of that width."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no Chromium (Debian's package chromium)")
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    (folder / "probed.html").write_text(
        page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8"
    )
    preferred = {"dark": 0, "light": 1}[scheme]
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,1000", "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}", f"--blink-settings=preferredColorScheme={preferred}", "--dump-dom",
        "--virtual-time-budget=10000", (folder / "frame.html").as_uri(),
    ]  # fmt: skip
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<pre id="found">(.*?)</pre>', dumped, re.DOTALL)
    assert found is not None and found[1], dumped
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def row(arm: str, gain: float | None, error: float | None, ratio: float, seeds: int = 5) -> dict[str, Any]:
    return {
        "arm": arm,
        "gain": gain,
        "gain_error": error,
        "seconds_over_baseline": ratio,
        "pairs": seeds,
    }


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row("a", None, None, 1.0)], "There is nothing yet to compare with dense."),
        ([row("slow", 0.1, 0.01, 1.2)], "No other arm is faster than dense."),
        ([row("a", -0.03, 0.01, 0.5), row("b", -0.05, 0.01, 0.4)], "No arm faster than dense is as good: the best of "),
        (
            [row("a", -0.03, 0.02, 0.5), row("b", 0.01, 0.01, 0.6)],
            "As far as 5 seeds can tell, a is the fastest arm th",
        ),
        ([row("a", 0.1, None, 0.3, seeds=1), row("b", 0.0, 0.01, 0.5)], "As far as 5 seeds can tell, b is the fastest"),
        ([row("a", 0.1, 0.01, 0.5, seeds=2)], "With fewer than 3 seeds nothing is proven: of the arms that are faster"),
    ],
)
def test_verdicts(rows: list[dict[str, Any]], expected: str) -> None:
    assert verdict({"t": [row("dense", None, None, 1.0), *rows]}, "dense").startswith(expected)
