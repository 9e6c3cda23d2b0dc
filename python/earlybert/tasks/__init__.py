"""The tasks: how their files are read, and how a model is judged on them."""

from __future__ import annotations

from ..errors import UsageError
from .base import Judgement, Source, Task, TaskData
from .glue import GLUE_TASKS, GlueTask
from .masked_lm import MaskedLMTask
from .pydocs import PyDocsTask
from .questions import QuestionAnsweringTask, Questions
from .sentences import Sentences, SentenceTask
from .squad import SQUAD_TASKS, SquadTask
from .table_task import TableTask
from .table_texts import TEXT_TASKS
from .table_words import TAGGING_TASK

#: All tasks to fine-tune on, by name.
TASKS: dict[str, Task] = {
    task.name: task for task in (*TEXT_TASKS, TAGGING_TASK, *GLUE_TASKS, *SQUAD_TASKS, PyDocsTask())
}
_ALL = {**TASKS, MaskedLMTask.name: MaskedLMTask()}

__all__ = [
    "TASKS",
    "GlueTask",
    "Judgement",
    "MaskedLMTask",
    "PyDocsTask",
    "QuestionAnsweringTask",
    "Questions",
    "SentenceTask",
    "Sentences",
    "Source",
    "SquadTask",
    "TableTask",
    "Task",
    "TaskData",
    "get_task",
]


def get_task(name: str) -> Task:
    """The task of that name: of `TASKS`, or `mlm`, which is pre-trained on.

    Raises:
        UsageError: there is none; the message lists those there are.
    """
    if name not in _ALL:
        raise UsageError(f"unknown task {name!r}; the tasks are {', '.join(TASKS)}")
    return _ALL[name]
