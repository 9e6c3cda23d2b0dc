"""A demonstration task that needs no download: which part of Python's documentation is a sentence from?

The sentences are made at run time from the documentation that every Python carries: the language reference
inside `pydoc_data.topics` and the docstrings of standard-library modules, which are parsed from source and
not imported. The classes are the language reference and four groups of modules. A sentence often names what
it is about, so that a classifier learns something; many say nothing particular ("Return the number of
items."), so that none is perfect.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from .base import Source, TaskData
from .sentences import Sentences, SentenceTask

TRAIN_PER_CLASS = 720
DEV_PER_CLASS = 150

#: Class -> modules and packages whose docstrings it is made of. All are in every Python from 3.10 on.
MODULES: dict[str, tuple[str, ...]] = {
    "text": (
        "email", "html", "xml", "json", "string", "textwrap", "difflib", "pprint", "shlex", "base64",
        "quopri", "locale", "gettext", "tokenize", "optparse", "argparse", "getopt", "csv", "configparser",
    ),
    "network": (
        "http", "urllib", "socket", "ssl", "smtplib", "ftplib", "imaplib", "poplib", "xmlrpc", "socketserver",
        "wsgiref", "webbrowser", "ipaddress",
    ),
    "concurrency": (
        "asyncio", "threading", "multiprocessing", "concurrent", "queue", "sched", "subprocess", "selectors",
        "contextlib",
    ),
    "testing": (
        "unittest", "doctest", "pdb", "bdb", "trace", "traceback", "timeit", "cProfile", "profile", "pstats",
        "inspect", "cmd", "code", "logging", "warnings", "dis", "tracemalloc",
    ),
}  # fmt: skip

_LANGUAGE = "language"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
# Quotes and emphasis differ between the reference's mark-up and the docstrings': they would give the class
# away.
_MARK_UP = re.compile(r"[\"'`*]")


@dataclass(frozen=True, kw_only=True)
class PyDocsTask(SentenceTask):
    """The demonstration task `pydocs`: 3,600 training and 750 development sentences in five equal classes.

    Deterministic for a given Python version; the documentation differs a little between versions. No sentence
    is in both splits, or in two classes.
    """

    name: str = "pydocs"
    sentences: int = 1
    labels: tuple[str, ...] = (_LANGUAGE, *MODULES)
    metrics: tuple[str, ...] = ("accuracy",)
    main_metric: str = "accuracy"

    def load(self, source: Source) -> TaskData:
        """See `Task.load`."""
        if source != Source():
            raise UsageError(f"task {self.name} is made from Python's own documentation: it takes no files of others")
        by_class = {label: _unique(_sentences_of(label)) for label in self.labels}
        seen: dict[str, int] = {}
        for sentences in by_class.values():
            for key in sentences:
                seen[key] = seen.get(key, 0) + 1

        train: list[tuple[str, int]] = []
        dev: list[tuple[str, int]] = []
        shuffle = random.Random(0).shuffle
        for index, (label, sentences) in enumerate(by_class.items()):
            own = [sentence for key, sentence in sentences.items() if seen[key] == 1]
            if len(own) < TRAIN_PER_CLASS + DEV_PER_CLASS:
                raise UsageError(
                    f"task {self.name}: expected {TRAIN_PER_CLASS + DEV_PER_CLASS} sentences of class {label} "
                    f"in this Python's documentation, found {len(own)}; is its standard library there as source?"
                )
            shuffle(own)
            dev += [(sentence, index) for sentence in own[:DEV_PER_CLASS]]
            train += [(sentence, index) for sentence in own[DEV_PER_CLASS : DEV_PER_CLASS + TRAIN_PER_CLASS]]
        shuffle(train)
        shuffle(dev)
        return TaskData(train=_examples(train), evals={"": _examples(dev)})


def _examples(pairs: list[tuple[str, int]]) -> Sentences:
    return Sentences([(sentence,) for sentence, _ in pairs], [label for _, label in pairs])


def _unique(sentences: Iterator[str]) -> dict[str, str]:
    """Sentences by what makes them the same: letters and digits, case ignored. The first spelling stays."""
    unique: dict[str, str] = {}
    for sentence in sentences:
        unique.setdefault(re.sub(r"[\W_]+", " ", sentence).casefold().strip(), sentence)
    return unique


def _sentences_of(label: str) -> Iterator[str]:
    if label == _LANGUAGE:
        from pydoc_data.topics import topics

        for name in sorted(topics):
            yield from split_sentences(topics[name])
    else:
        for module in MODULES[label]:
            for docstring in _docstrings(module):
                yield from split_sentences(docstring)


def _docstrings(module: str) -> Iterator[str]:
    """The docstrings of a module or package in the order of its source, without importing it."""
    library = Path(sysconfig.get_path("stdlib"))
    package = library / module
    paths = sorted(package.rglob("*.py")) if package.is_dir() else [library / f"{module}.py"]
    for path in paths:
        if not path.is_file() or "test" in path.relative_to(library).parts:
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


def split_sentences(text: str) -> Iterator[str]:
    """The plain sentences of a text: 5 to 20 words, no code, on one line, without mark-up."""
    for paragraph in re.split(r"\n\s*\n", text):
        if ">>>" in paragraph or "::" in paragraph:
            continue
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
            plain = _MARK_UP.sub("", sentence)
            if 5 <= len(plain.split()) <= 20 and re.fullmatch(r"[A-Z].*[.!?]", plain):
                yield plain
