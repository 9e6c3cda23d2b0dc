"""Ctrl-C and SIGTERM: what is done, said and left."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from earlybert import FinetuneArguments, finetune
from earlybert.cli import main
from earlybert.errors import Interrupted
from earlybert.programs import evaluations
from earlybert.training.loop import TrainingLoop

Make = Callable[..., FinetuneArguments]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_job_that_is_told_to_end_leaves_a_checkpoint(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    handler = signal.getsignal(number)
    step = TrainingLoop._train_step
    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_train_step", lambda *a: step(*a) or signal.raise_signal(number))
        with pytest.raises(Interrupted, match="after 1 of 12 steps, with a checkpoint"):
            finetune(arguments(method="dense"))
    assert signal.getsignal(number) is handler
    assert finetune(arguments(method="dense", resume=True))["steps"]["train"] == 12


def test_a_command_that_is_told_to_end_says_so_whatever_it_is_doing(
    arguments: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("it went on")

    args = arguments(method="dense")
    monkeypatch.setattr(evaluations, "predict", stopped)
    # What the process does with the signal without us would end the tests.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        flags = ["--model", args.model, "--task", "sst2", "--data-dir", args.data_dir, "--method", "dense"]
        flags += ["--output-dir", args.output_dir, "--max-length", "16", "--max-steps", "2", "--device", "cpu"]
        assert main(["finetune", *flags]) == 130
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "interrupted; the same command with --resume" in capsys.readouterr().err
