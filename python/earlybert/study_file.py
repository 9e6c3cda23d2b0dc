"""The file that describes a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from .arguments import FinetuneArguments
from .errors import UsageError
from .parsing import TrainingParser, named, read_pairs
from .programs.study import Study

#: What every run of a study has unless the file says otherwise: a study is about its numbers.
_DEFAULTS = {"discard_model": True}
_SECTIONS = ("output_dir", "seeds", "baseline", "common", "tasks", "arms")
#: What is a study's and no run's.
_OF_THE_STUDY = ("output_dir", "seed", "resume", "overwrite_output_dir")


def read_study(file: str) -> Study:
    """Reads a study's file, YAML or JSON.

    It has `output_dir`; `seeds`, a list; `common`, settings of all runs by the names of finetune's flags; `tasks`, by
    name settings of each (`task` is the name, unless they say otherwise); `arms`, by name settings of each, which
    prevail over a task's as those over the common ones; and perhaps `baseline`, the name of the arm that others are
    compared with, by default the first. A list in an arm, where a flag takes one value, makes an arm of each value:
    several lists, of each combination.

    Raises:
        UsageError: the file is not there, or not as expected.
    """
    sections: dict[str, Any] = {}
    for name, value in read_pairs(Path(file)):
        if name not in _SECTIONS or name in sections:
            what = "given twice" if name in sections else "no such section; expected " + ", ".join(_SECTIONS)
            raise UsageError(f"{file}: {name}: {what}")
        sections[name] = value
    if missing := [name for name in ("output_dir", "seeds", "tasks", "arms") if not sections.get(name)]:
        raise UsageError(f"{file}: expected {' and '.join(missing)}, found none")
    seeds = sections["seeds"]
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds) or len({*seeds}) < len(seeds):
        raise UsageError(f"{file}: seeds: expected a list of different whole numbers, found {seeds}")

    reader = _Reader(file)
    common = reader.settings(sections.get("common"), "common")
    tasks = {name: reader.settings(value, f"tasks: {name}") for name, value in reader.named(sections["tasks"], "tasks")}
    arms: dict[str, dict[str, Any]] = {}
    for name, value in reader.named(sections["arms"], "arms"):
        for arm, settings in reader.grid(name, value):
            if arm in arms:
                raise UsageError(f"{file}: arms: {arm}: given twice")
            arms[arm] = settings
    baseline = str(sections.get("baseline", next(iter(arms))))
    if baseline not in arms:
        raise UsageError(f"{file}: baseline: expected one of the arms {', '.join(arms)}, found {baseline}")
    return Study(
        str(sections["output_dir"]),
        {
            task: {arm: reader.arguments({"task": task, **common, **own, **settings}) for arm, settings in arms.items()}
            for task, own in tasks.items()
        },
        seeds,
        baseline,
    )


class _Reader:
    """Reads parts of a study's file."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._parser = TrainingParser(FinetuneArguments)

    def named(self, content: Any, where: str) -> list[tuple[str, Any]]:
        """The names and values of a section, of which there may be none."""
        return [] if content is None else named(content, f"{self._file}: {where}")

    def settings(self, content: Any, where: str) -> dict[str, Any]:
        """Settings by the names of arguments."""
        return self._settings(self.named(content, where), where)

    def grid(self, arm: str, content: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        """The arms that one with lists stands for, by name."""
        where = f"arms: {arm}"
        pairs = self.named(content, where)
        varied = [name for name, value in pairs if isinstance(value, list) and not self._parser.takes_list(name)]
        for values in product(*(value for name, value in pairs if name in varied)):
            chosen = dict(zip(varied, values, strict=True))
            shown = [arm, *(f"{name}={value}" for name, value in chosen.items())]
            yield " ".join(shown), self._settings([(n, chosen.get(n, value)) for n, value in pairs], where)

    def _settings(self, pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
        settings = self._parser.settings(pairs, f"{self._file}: {where}")
        if found := [name for name in _OF_THE_STUDY if name in settings]:
            raise UsageError(f"{self._file}: {where}: {found[0]} is the study's to say, and no single run's")
        return settings

    def arguments(self, settings: Mapping[str, Any]) -> FinetuneArguments:
        """The arguments of a run, but for seed and folder."""
        if "model" not in settings:
            raise UsageError(f"{self._file}: common: expected model, found none")
        return FinetuneArguments(output_dir="", **{**_DEFAULTS, **settings})
