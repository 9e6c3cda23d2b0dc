"""Fine-tuning on a task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from .. import processes
from ..arguments import TASK_OPTIONS, FinetuneArguments
from ..tasks import Source, Task, get_task
from ..tasks.base import Examples
from ..training.data import EncodedExamples
from .predictions import read_tests, render
from .preparation import Prepared, prepare
from .run import Run
from .stages import TrainingStage


def finetune(args: FinetuneArguments) -> dict[str, Any]:
    """Fine-tunes a model by one of the methods and writes the run's folder.

    Args:
        args: what to do; see `FinetuneArguments`.

    Returns:
        What is in `metrics.json`:

        - `eval`: the task's metrics on the development set, `main_metric` the name of the first among them, and the
          mean loss, `eval_loss`.
        - `seconds`: of the stages. `search` is everything that it takes to have the small model: training
          with gates, looking at tickets, drawing, rewinding and compacting. `train` is the training stage and
          `total` the sum of both. `loading`, `tokenizing` and `evaluation` are in none of them.
        - `curve`: the evaluations while training, if any (`eval_strategy`); `best`, which of them was the best, if that
          was asked for.
        - `steps`: optimizer steps of `search` and `train`.
        - `parameters`: of the model as it was (`dense`) and as it was trained (`trained`).
        - `ticket`: kept heads and neurons per layer, None for a dense run.
        - `inputs`: the SHA-256 of each file that the arguments name.
        - `warnings`: sentences on what makes the results doubtful.
        - `date`: when it was written (ISO 8601, UTC); `commit`, that of this library's checkout, if it is run from one.
        - `search`: whether the early bird was seen or the limit reached, at which step, and every comparison.

    Raises:
        UsageError: (a ValueError) the run cannot be done as asked; before anything is written, and, unless it
            is for the model's weights or for examples that its tokenizer cannot cut up, before anything is loaded.
        FloatingPointError: the loss, or an output of the trained model, is not finite.
        Interrupted: on SIGINT or SIGTERM while training, after a checkpoint has been written.
        LostProcessError: of several processes (torchrun), another has ended.
    """
    args.check()
    data_dir, train_file, validation_file = (
        None if path is None else Path(path) for path in (args.data_dir, args.train_file, args.validation_file)
    )
    source = Source(data_dir, train_file, validation_file, args.dataset_name, args.dataset_config_name)
    with processes.joined():
        with processes.together():
            prepared = prepare(args, task_of(args), source)
            run = Finetuning(prepared, read_tests(args, prepared.task, source))
        return run.run()


def task_of(args: FinetuneArguments) -> Task:
    """The task that the arguments name, with what they say of it.

    Raises:
        UsageError: there is none, or it does not know what they say.
    """
    return get_task(args.task).with_options(**{name: getattr(args, name) for name in TASK_OPTIONS})


class Finetuning(Run):
    """A run on a task with one training stage.

    Args:
        prepared: the run.
        tests: by the name of the file that it writes, what the trained model is to say something of.
    """

    args: FinetuneArguments

    def __init__(self, prepared: Prepared, tests: Mapping[str, Examples]) -> None:
        super().__init__(prepared)
        self._tests = tests

    def read_examples(self) -> dict[str, EncodedExamples]:
        """See `Run.read_examples`."""
        self.examples = self.encode(self.prepared.data.train)
        self._encoded_tests = {name: self.encode(examples) for name, examples in self._tests.items()}
        return {"the training examples": self.examples}

    def predictions(self, model: nn.Module) -> dict[str, bytes]:
        """See `Run.predictions`."""
        task, files = self.prepared.task, {}
        for name, encoded in self._encoded_tests.items():
            answers = task.answers(self.evaluations.outputs(model, encoded), encoded)
            files[name] = render(task, answers, Path(name).suffix)
        return files

    def training_stages(self) -> list[TrainingStage]:
        """See `Run.training_stages`."""
        steps = self.stages.steps(self.examples)
        return [self.stages.training("train", self.examples, steps, self.args.input_length)]
