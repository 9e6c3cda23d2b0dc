"""What is said of training while it runs."""

from __future__ import annotations

import io
import logging
import re
import sys
import time
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
from torch import nn

from earlybert import FinetuneArguments, finetune
from earlybert.training import progress
from earlybert.training.data import EncodedExamples
from earlybert.training.stopwatch import Stopwatch
from tests.helpers.training_loop import make_loop

LINE = re.compile(
    r"train: step (\d+) of 12, loss 0\.\d{4}, learning rate (\S+), [\d,]+ tokens/s, (\d+\.\d\d) GiB memory, "
    r"\d\d:\d\d left"
)


def test_without_a_terminal_the_log_says_how_far_it_is(
    arguments: Callable[..., FinetuneArguments], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "LINE_INTERVAL", 0.0)
    caplog.set_level(logging.INFO, "earlybert")
    found = finetune(arguments(method="dense", logging_steps=5))
    lines = [message for message in caplog.messages if message.startswith("train: step")]
    matches = [LINE.fullmatch(line) for line in lines]
    assert [int(match[1]) for match in matches] == list(range(1, 13))
    assert [float(match[2]) for match in matches] == pytest.approx(
        [5e-3 * (12 - step) / 12 for step in range(12)], 5e-3
    )
    assert all(0.01 < float(match[3]) < 1000 for match in matches)
    assert lines[-1].endswith(" 00:00 left")
    assert [record["step"] for record in found["train_log"]] == [5, 10, 12]
    assert found["train_log"][0]["learning_rate"] == pytest.approx(5e-3 * 8 / 12)
    caplog.clear()
    monkeypatch.setattr(progress, "LINE_INTERVAL", 1e9)
    finetune(arguments(method="dense", overwrite_output_dir=True))
    lines = [message for message in caplog.messages if message.startswith("train: step")]
    assert [LINE.fullmatch(line)[1] for line in lines] == ["12"], "the last one is always written"


def test_speed_counts_tokens_and_no_padding(
    model: nn.Module, examples: EncodedExamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that a second passes on in every step, also in an epoch's last step and beyond."""
    loop = make_loop(model, examples, max_steps=13, logging_steps=4, pad_to=20)
    monkeypatch.setattr(Stopwatch, "seconds", property(lambda watch: float(loop.step)))
    records = []
    loop.run(on_record=records.append)
    lengths = np.array(examples.lengths())
    steps = [lengths[np.concatenate(batches) % len(lengths)].sum() for batches in islice(loop.order.steps_from(0), 13)]
    expected = [sum(steps[:4]) / 4, sum(steps[4:8]) / 4, sum(steps[8:12]) / 4, steps[12]]
    assert [record.pop("tokens_per_second") for record in records] == expected
    assert records == loop.history


def test_records_are_sent_off_the_clock(model: nn.Module, examples: EncodedExamples) -> None:
    loop = make_loop(model, examples)
    start = time.perf_counter()
    loop.run(on_record=lambda record: time.sleep(0.5))
    assert loop.watch.seconds < time.perf_counter() - start - 0.4


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar(
    model: nn.Module, examples: EncodedExamples, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "earlybert")
    monkeypatch.setattr(sys, "stderr", Terminal())
    make_loop(model, examples, logging_steps=2).run()
    shown = sys.stderr.getvalue()
    assert "test: 100%" in shown
    assert re.search(r"loss 0\.\d{4}, learning rate 1\.00e-03, [\d,]+ tokens/s", shown)
    assert not [message for message in caplog.messages if message.startswith("test: step")]


def test_divergence_that_stays_finite_is_said(
    arguments: Callable[..., FinetuneArguments], caplog: pytest.LogCaptureFixture
) -> None:
    metrics = finetune(arguments(search_learning_rate=10.0, search_steps=6))
    (warning,) = metrics["warnings"]
    assert warning in caplog.messages
    assert warning.startswith("search: the loss ended at ")
    assert "the ticket was drawn from a search that diverged" in warning
    metrics = finetune(arguments(method="dense", learning_rate=10.0, overwrite_output_dir=True))
    assert metrics["warnings"][0].startswith("train: the loss ended at ")
    assert finetune(arguments(overwrite_output_dir=True))["warnings"] == []
