"""What a run can be told: the API and the command line in one. Imports nothing heavy."""

from .finetune import TASK_OPTIONS, FinetuneArguments
from .pretrain import PretrainArguments
from .recipes import RECIPES
from .run import KERNELS, METHODS, SCHEDULES, SCOPES, SCORES, TICKET_WEIGHTS, RunArguments, defaults

__all__ = [
    "KERNELS",
    "METHODS",
    "RECIPES",
    "SCHEDULES",
    "SCOPES",
    "SCORES",
    "TASK_OPTIONS",
    "TICKET_WEIGHTS",
    "FinetuneArguments",
    "PretrainArguments",
    "RunArguments",
    "defaults",
]
