"""What the pages of the root and of docs/ tell users to type: Python blocks run, in order; commands and links exist."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification

import earlybert_kernels as ek
from earlybert import cli
from earlybert.commands import COMMANDS
from earlybert.tasks import TASKS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NAMES = [page.name for page in PAGES]


#: What each command does, taken out in the test of its arguments.
TARGETS = {
    "finetune": "earlybert.programs.finetune.finetune",
    "pretrain": "earlybert.programs.pretrain.pretrain",
    "compare": "earlybert.programs.compare.compare",
    "study": "earlybert.study_file.read_study",
    "demo": "earlybert.programs.demo.demo",
    "verify": "earlybert.programs.verify.verify",
    "plot": "earlybert.programs.plots.plot",
    "report": "earlybert.programs.report.report",
    "draw": "earlybert.search.result.read_scores",
    "predict": "earlybert.programs.inference.predict",
    "evaluate": "earlybert.programs.inference.evaluate",
    "export": "earlybert.programs.export.export",
    "push": "earlybert.programs.push.push",
    "env": "earlybert_kernels.env.report",
}


def blocks(page: Path, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [text for name, text in fenced if name == language]


def commands() -> Iterator[list[str]]:
    """Every command line in a block without a language, comments gone, with line ends behind a backslash joined."""
    for page in PAGES:
        for block in blocks(page, ""):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip() and not line.startswith((" ", "|")):
                    yield shlex.split(line, comments=True)


def loader(tiny_bert: str, toy_sst2: str) -> DataLoader:
    from transformers import AutoTokenizer, DataCollatorWithPadding

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    return DataLoader(examples(tiny_bert, toy_sst2), 8, collate_fn=DataCollatorWithPadding(tokenizer))


def examples(tiny_bert: str, toy_sst2: str) -> list[dict]:
    from transformers import AutoTokenizer

    sentences = TASKS["sst2"].read(Path(toy_sst2) / "train.tsv")
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    return [
        {**tokenizer(text, truncation=True, max_length=16), "labels": label}
        for (text,), label in zip(sentences.texts, sentences.labels, strict=True)
    ]


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batches: DataLoader) -> None:
    for batch in batches:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_blocks_run(
    page: Path, tiny_bert: str, toy_sst2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page.name == "trainer.md":
        pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
    if page.name == "export.md":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    names = {
        "loader": loader(tiny_bert, toy_sst2),
        "train": train,
        "data": examples(tiny_bert, toy_sst2),
        "model": AutoModelForSequenceClassification.from_pretrained(tiny_bert),
    }
    for block in blocks(page, "python"):
        small = block.replace('"bert-base-uncased"', repr(tiny_bert)).replace("max_length=128", "max_length=16")
        exec(compile(small, str(page), "exec"), names)
    if page.name == "export.md":
        expected = names["model"](**names["inputs"]).logits
        for logits in (names["torch_logits"], torch.from_numpy(names["onnx_logits"])):
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        return
    assert ek.is_converted(names["model"])
    if page.name == "by-hand.md":
        batch = next(iter(names["loader"]))
        with torch.no_grad():
            expected = names["model"].eval()(**batch).logits
            for other in ("small", "stock"):
                torch.testing.assert_close(names[other].eval()(**batch).logits, expected, rtol=1e-4, atol=1e-5)


def test_there_are_commands_to_check() -> None:
    programs = {command[0].partition("=")[0] for command in commands()}
    assert programs >= {"earlybert", "pip", "make", "python", "pytest"}


def started(command: list[str]) -> list[str]:
    """What `torchrun` and `accelerate launch` are to start in several processes; other commands as they are."""
    if command[0] in ("torchrun", "accelerate") and "-m" in command:
        return command[command.index("-m") + 1 :]
    return command


@pytest.mark.parametrize("command", [c for c in map(started, commands()) if c[0] == "earlybert"], ids=" ".join)
def test_commands_are_understood(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as arguments go: what they would do is taken out."""
    done = []

    def reached(name: str):
        def stop(*_, **__):
            done.append(name)
            raise KeyboardInterrupt

        return stop

    for name, target in TARGETS.items():
        monkeypatch.setattr(target, reached(name))
    assert cli.main(command[1:]) == cli.EXIT_INTERRUPTED
    assert done == [command[1]]


@pytest.mark.parametrize("command", [c for c in commands() if c[:2] == ["python", "-m"]], ids=" ".join)
def test_modules_know_their_flags(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [argument for argument in command if argument.startswith("--")]
    if not flags:
        return
    monkeypatch.setattr(sys, "argv", ["python -m", "--help"])
    with pytest.raises(SystemExit) as end:  # here, because a process of its own would import torch once more
        runpy.run_module(command[2], run_name="__main__")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    if command[2] == "bench.end_to_end":  # which hands the others on
        shown += COMMANDS["compare"].make_parser("compare", []).format_help()
    # Where options are listed: a description may be an example of the very flags.
    known = {flag for line in re.findall(r"^ {1,4}(-.*)$", shown, re.M) for flag in re.findall(r"--[\w-]+", line)}
    assert set(flags) <= known


@pytest.mark.parametrize("command", [c for c in commands() if c[0] == "make"], ids=" ".join)
def test_targets_of_make_exist(command: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in command[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("http")]
    assert [link for link in links if not (page.parent / link).exists()] == []
    paths = re.findall(r"`((?:bench|csrc|examples|tests|python|earlybert_kernels)/[\w./-]+)`", text)
    assert [path for path in paths if "NAME" not in path and not (ROOT / path).exists()] == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
