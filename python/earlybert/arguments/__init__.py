"""What a run can be told: the API and the command line in one. Imports nothing heavy."""

from .finetune import TASK_OPTIONS, FinetuneArguments
from .pretrain import PretrainArguments
from .run import KERNELS, METHODS, SCHEDULES, RunArguments

__all__ = ["KERNELS", "METHODS", "SCHEDULES", "TASK_OPTIONS", "FinetuneArguments", "PretrainArguments", "RunArguments"]
