"""SQuAD (arXiv 1606.05250) and SQuAD 2.0 (1806.03822), read from the official files or from the Hugging Face hub."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MissingFileError, UsageError
from ..files import read_json
from .base import Source, TaskData
from .questions import Answer, Question, QuestionAnsweringTask, Questions
from .reading import check_is_file, read_hub

logger = logging.getLogger(__name__)

#: Which share of a file's answers may not be where the file says they are.
MOST_MISPLACED = 0.01


@dataclass(frozen=True, kw_only=True)
class SquadTask(QuestionAnsweringTask):
    """A version of SQuAD.

    Attributes:
        version: the beginning of what its files call it.
        hub_dataset: its name on the hub.
    """

    version: str
    hub_dataset: str

    def load(self, source: Source) -> TaskData:
        """See `Task.load`."""
        files = source.files()
        if files is not None:
            train, dev = files
        elif source.data_dir is not None:
            train, dev = (self._find(source.data_dir, split) for split in ("train", "dev"))
        else:
            return self._load_from_hub()
        questions, held_out = self.read(train), self.read(dev)
        if self.unanswerable and all(question.answers for question in questions.items):
            raise UsageError(
                f"{train}: expected some questions without an answer to learn from, found that every question has an "
                "answer; is it a file of SQuAD 1.1 (--task squad)?"
            )
        return TaskData(train=questions, evals={"": held_out})

    def read_file(self, path: Path, *, labelled: bool) -> Questions:
        """See `Task.read_file`."""
        return self.read(path, labelled=labelled)

    def read(self, path: Path, *, labelled: bool = True) -> Questions:
        """Reads one file.

        Args:
            path: the file.
            labelled: whether its answers are read; without, it needs none.

        Raises:
            MissingFileError: there is none.
            UsageError: naming the file and the place in it, where it is not in SQuAD's format; or more than
                `MOST_MISPLACED` of its answers are not where it says.
        """
        check_is_file(path)
        return self._checked(_questions_of(path, read_json(path), labelled), str(path), labelled=labelled)

    def _find(self, folder: Path, split: str) -> Path:
        """The file of a split in a folder that may have those of both versions."""
        if not folder.is_dir():
            raise MissingFileError(f"{folder}: {'a file, expected a folder' if folder.exists() else 'no such folder'}")
        found = sorted(folder.glob(f"{split}-*.json"))
        if len(found) > 1:
            found = [path for path in found if path.name.startswith(f"{split}-v{self.version}")] or found
        if not found:
            raise MissingFileError(
                f"{folder}: no file {split}-*.json; task {self.name} needs {self._official(split)} there"
            )
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UsageError(f"{folder}: several files: {names}; name one with --train-file and --validation-file")
        return found[0]

    def _official(self, split: str) -> str:
        return f"{split}-v{self.version}{'.1' if self.version == '1' else '.0'}.json"

    def _checked(self, questions: Iterator[Question], where: str, *, labelled: bool = True) -> Questions:
        """The questions with the answers that are where they are said to be, the number of others in a warning."""
        kept: list[Question] = []
        ids: set[str] = set()
        answers = misplaced = 0
        for question in questions:
            if question.id in ids:
                raise UsageError(f"{where}: expected ids that differ, found {question.id!r} twice")
            ids.add(question.id)
            if labelled and not question.answers and not self.unanswerable:
                raise UsageError(
                    f"{where}: expected answers to every question, found none to {question.id!r}; is it a file of "
                    "SQuAD 2.0 (--task squad_v2)?"
                )
            answers += len(question.answers)
            misplaced += sum(not answer.is_in(question.context) for answer in question.answers)
            kept.append(question)
        if not kept:
            raise UsageError(f"{where}: expected at least one question, found none")
        if misplaced > MOST_MISPLACED * answers:
            raise UsageError(
                f"{where}: {misplaced} of {answers} answers are not in their contexts where answer_start says; were "
                "contexts changed, or positions counted in bytes?"
            )
        if misplaced:
            logger.warning("%s: left out %d of %d answers, not found at answer_start", where, misplaced, answers)
        return Questions(kept)

    def _load_from_hub(self) -> TaskData:
        files = f"{self._official('train')} and {self._official('dev')}"
        dataset = read_hub(
            self.hub_dataset,
            what=f"task {self.name} ({self.hub_dataset})",
            instead=f"To read it from files, give --data-dir, a folder with {files}.",
        )

        def questions(split: str) -> Questions:
            rows = (_question_of_row(row) for row in dataset[split])
            return self._checked(rows, f"{self.hub_dataset}, split {split}")

        return TaskData(train=questions("train"), evals={"": questions("validation")})


def _question_of_row(row: dict[str, Any]) -> Question:
    answers = row["answers"]
    pairs = zip(answers["text"], answers["answer_start"], strict=True)
    return Question(row["id"], row["question"], row["context"], tuple(Answer(text, start) for text, start in pairs))


def _questions_of(path: Path, content: Any, labelled: bool) -> Iterator[Question]:
    """The questions of a file, in its order, without their answers if it is not `labelled`."""
    for article, where in _items(path, content, "data", ""):
        for paragraph, within in _items(path, article, "paragraphs", where):
            context = _text(path, paragraph, "context", within)
            for qa, place in _items(path, paragraph, "qas", within):
                # Those to a question that has no answer are only plausible, and under another name.
                impossible = qa.get("is_impossible", False)
                if not isinstance(impossible, bool):
                    raise UsageError(f"{path}: {place}.is_impossible: expected true or false, found {impossible!r}")
                items = () if impossible or not labelled else _items(path, qa, "answers", place)
                answers = tuple(
                    Answer(_text(path, item, "text", spot), _position(path, item, spot)) for item, spot in items
                )
                yield Question(_text(path, qa, "id", place), _text(path, qa, "question", place), context, answers)


def _items(path: Path, value: dict[str, Any], name: str, where: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects of a list in an object, and where each of them is."""
    items = value.get(name) if isinstance(value, dict) else None
    place = f"{where}.{name}".lstrip(".")
    if not isinstance(items, list):
        found = "none" if items is None else type(items).__name__
        raise UsageError(f"{path}: expected SQuAD's JSON, with a list at {place}, found {found}")
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise UsageError(f"{path}: {place}[{number}]: expected an object, found {type(item).__name__}")
        yield item, f"{place}[{number}]"


def _text(path: Path, value: dict[str, Any], name: str, where: str) -> str:
    text = value.get(name)
    if not isinstance(text, str):
        found = "none" if text is None else type(text).__name__
        raise UsageError(f"{path}: {where}.{name}: expected a text, found {found}")
    if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
        raise UsageError(f"{path}: {where}.{name}: expected a text, found half of a surrogate pair in it")
    return text


def _position(path: Path, value: dict[str, Any], where: str) -> int:
    position = value.get("answer_start")
    if not isinstance(position, int) or isinstance(position, bool):
        raise UsageError(f"{path}: {where}.answer_start: expected a number, found {position!r}")
    return position


#: Both versions.
SQUAD_TASKS: tuple[SquadTask, ...] = (
    SquadTask(name="squad", version="1", hub_dataset="rajpurkar/squad", unanswerable=False),
    SquadTask(
        name="squad_v2",
        version="2",
        hub_dataset="rajpurkar/squad_v2",
        unanswerable=True,
    ),
)
