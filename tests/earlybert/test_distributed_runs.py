"""`finetune` and `pretrain` in two processes against one: ticket, losses, who writes, and what the loss of one does.

Three times two processes are started: to lose one in a search; by torchrun, to go on from there, lose the other one in
training and be started anew; and for all else.
"""

from __future__ import annotations

import json
import logging
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForTokenClassification

import earlybert_kernels as ek
from earlybert import cli, finetune, processes
from earlybert.errors import ElsewhereError, UsageError
from earlybert.launcher import check_alone
from earlybert.programs.preparation import _own_device
from earlybert.training import loop as loop_module
from earlybert.training.batches import NO_LABEL
from earlybert.training.data import EncodedExamples, TrainingOrder, deal
from earlybert.training.loop import StageSettings, TrainingLoop
from earlybert.training.ragged import Ragged
from earlybert_kernels.models import families
from earlybert_kernels.models.family import Labels, ModelFamily
from tests.helpers.bert_heads import LENGTHS, labels_of
from tests.helpers.model_folder import edit_config
from tests.helpers.program_processes import Command, Seen, launch, launch_again, seen_by
from tests.helpers.tiny_bert import batch, some_ticket, tiny_model

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo to train several processes"
)

#: float32: two processes add up gradients of half a batch each, and then the two.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@dataclass
class Launched:
    """What the processes have left.

    Attributes:
        folder: of their runs, each in one of its name.
        flags: the arguments of the runs, by name.
        lost: what was said where a process was lost, in the search and in training.
    """

    folder: Path
    flags: dict[str, list[str]]
    lost: list[str]

    def argv(self, name: str, **to: Path) -> list[str]:
        """The arguments of a run, in its own folder or in another."""
        return [*self.flags[name], "--output-dir", str(to.get("to", self.folder / name))]

    def metrics(self, name: str) -> dict[str, Any]:
        return read_metrics(self.folder / name)

    def seen(self, name: str) -> list[Seen]:
        return seen_by(self.folder, name)


def read_metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, tiny_bert: str, toy_sst2: str, toy_texts: str) -> Launched:
    folder = tmp_path_factory.mktemp("processes")
    plain = shutil.copytree(tiny_bert, folder / "model")
    edit_config(plain, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    task = ["finetune", "--task", "sst2", "--data-dir", toy_sst2, "--max-length", "16", "--device", "cpu"]
    rates = ["--learning-rate", "5e-3", "--search-learning-rate", "5e-3", "--logging-steps", "1"]
    rates += ["--early-bird-interval", "2", "--checkpoint-steps", "2"]
    # Of 65 examples an epoch's ninth step, which is one of training, has a single one.
    search = ["--search-steps", "8", "--max-train-examples", "65", "--batch-size", "4"]
    search += ["--gradient-accumulation-steps", "2"]
    best = ["--eval-strategy", "steps", "--eval-steps", "5", "--load-best-model-at-end"]
    whole = [*task, *rates, *search, *best, "--max-steps", "12", "--model", str(plain)]
    short = [*task, *rates, "--batch-size", "5", "--search-steps", "3", "--max-steps", "5"]
    flags = {
        "finetune": whole,
        "lost": whole,
        "stock": [*short, "--kernels", "off", "--model", str(plain)],
        "dropout": [*short, "--model", tiny_bert],
        "interrupted": [*short, "--model", tiny_bert],
        "pretrain": [
            "pretrain", "--train-file", toy_texts, "--config-name", str(plain), "--max-length", "12", "--device",
            "cpu", "--long-length", "20", "--long-share", "0.4", "--batch-size", "9", *rates, "--search-steps", "6",
            "--max-steps", "8",
        ],
        "few": [*short, "--batch-size", "1", "--model", str(plain)],
        "compare": ["compare", *short[1:], "--model", str(plain)],
        "finished": whole,
    }  # fmt: skip
    found = Launched(folder, flags, [])

    lost = {"argv": [*found.argv("lost"), "--resume"], "signal": signal.SIGKILL}
    first, second = launch(folder, Command("lost-searching", **lost, stage="search", step=5, rank=1))
    assert first.status == 1 and second.status == -signal.SIGKILL
    found.lost.append(first.output)
    shutil.copytree(folder / "lost", folder / "lost-searching")
    again = launch_again(folder, Command("lost-training", **lost, stage="train", step=7, rank=0))
    assert again.status == 0 and "(exitcode: -9)" in again.output, again.output
    found.lost.append(again.output)
    for ended in launch(
        folder,
        *[Command(name, found.argv(name)) for name in ("finetune", "stock", "dropout", "pretrain", "few", "compare")],
        Command("interrupted", found.argv("interrupted"), stage="train", step=3, rank=1, signal=signal.SIGTERM),
        Command("continued", [*found.argv("interrupted"), "--resume"]),
        Command("finished", [*found.argv("lost"), "--resume"]),
    ):
        assert ended.status == 0, ended.output
    return found


def losses(metrics: dict[str, Any]) -> torch.Tensor:
    """Of every step."""
    records = [*metrics["search"]["log"], *metrics["train_log"]]
    return torch.tensor([record["loss"] for record in records], dtype=torch.float64)


def assert_same_run(folder: Path, other: Path) -> None:
    """The very ticket, and losses but for the order of additions."""
    assert (folder / "ticket.json").read_bytes() == (other / "ticket.json").read_bytes()
    one, two = read_metrics(folder), read_metrics(other)
    assert [check["step"] for check in one["search"]["checks"]] == [check["step"] for check in two["search"]["checks"]]
    torch.testing.assert_close(losses(one), losses(two), **CLOSE)
    for name in ("eval_loss", one["main_metric"]):
        assert one["eval"][name] == pytest.approx(two["eval"][name], abs=1e-5), name
    assert one["best"] == pytest.approx(two["best"], abs=1e-5) and one["steps"] == two["steps"]


@needs_gloo
@pytest.mark.parametrize("name", ["finetune", "stock", "pretrain"])
def test_one_process_has_the_same_ticket_and_losses(launched: Launched, tmp_path: Path, name: str) -> None:
    assert cli.main(launched.argv(name, to=tmp_path / name)) == 0
    assert_same_run(launched.folder / name, tmp_path / name)
    assert [seen.status for seen in launched.seen(name)] == [0, 0]
    assert launched.metrics(name)["machine"]["processes"] == 2
    assert "processes" not in read_metrics(tmp_path / name)["machine"]
    if name == "pretrain":
        assert launched.metrics(name)["steps"] == {"search": 6, "train": 8}


@needs_gloo
def test_batches_are_dealt_out_by_length(launched: Launched) -> None:
    for name, longest in {"finetune": 13, "stock": 13, "pretrain": 20}.items():
        one, two = (seen.tokens for seen in launched.seen(name))
        assert [len(batches) for batches in one] == [len(batches) for batches in two]
        pairs = [pair for step in zip(one, two, strict=True) for pair in zip(*step, strict=True)]
        assert len(pairs) > 7 and max(abs(first - second) for first, second in pairs) <= longest


@needs_gloo
def test_the_first_process_alone_writes_and_speaks(launched: Launched) -> None:
    first, second = launched.seen("finetune")
    assert any("metrics.json" in written for written in first.written) and "ticket drawn" in first.said
    assert second.written == [] and second.said == ""


@needs_gloo
def test_dropout_is_another_in_each_process_and_goes_on_where_it_was(launched: Launched) -> None:
    first, second = launched.seen("dropout")
    assert not set(first.random) & set(second.random)
    interrupted = launched.seen("interrupted")
    assert [seen.status for seen in interrupted] == [130, 130], "one of them was told to end"
    assert "after 3 of 5 steps, with a checkpoint" in interrupted[0].said and interrupted[1].said == ""
    assert [seen.random for seen in launched.seen("continued")] == [first.random[-2:], second.random[-2:]]
    whole, continued = launched.metrics("dropout"), launched.metrics("interrupted")
    assert torch.equal(losses(whole), losses(continued)) and whole["eval"] == continued["eval"]


@needs_gloo
def test_a_process_that_is_lost_ends_the_run_with_a_message(launched: Launched) -> None:
    for said, number in zip(launched.lost, (0, 1), strict=True):
        (line,) = (line for line in said.splitlines() if line.startswith("earlybert: error: "))
        assert f"process {number} of 2: another process has ended, and with it the run" in line
        assert "the same command with --resume" in line and "with as many processes or others" in line
        assert "Error" not in said.replace("ChildFailedError", "")


@needs_gloo
def test_two_processes_go_on_from_what_was_lost(launched: Launched) -> None:
    """In the search, and once more in training: bitwise, as the same two processes had."""
    whole, lost = launched.metrics("finetune"), launched.metrics("lost")
    assert torch.equal(losses(lost), losses(whole))
    assert (launched.folder / "lost" / "ticket.json").read_bytes() == (
        launched.folder / "finetune" / "ticket.json"
    ).read_bytes()
    assert whole["eval"] == lost["eval"] and lost["warnings"] == whole["warnings"]
    again, silent = launched.seen("finished")
    assert again.status == silent.status == 0 and "holds this run, finished" in again.said
    assert silent.written == []


@needs_gloo
@pytest.mark.parametrize("where", ["searching", "training"])
def test_one_process_goes_on_from_what_two_have_left(launched: Launched, tmp_path: Path, where: str) -> None:
    shutil.copytree(launched.folder / f"lost-{where}", tmp_path / "run")
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert checkpoint["stage"] == {"searching": "search", "training": "train"}[where]
    assert cli.main([*launched.argv("lost", to=tmp_path / "run"), "--resume"]) == 0
    assert_same_run(launched.folder / "finetune", tmp_path / "run")
    (warning,) = read_metrics(tmp_path / "run")["warnings"]
    assert "machine processes 2 and now None" in warning


@needs_gloo
def test_what_cannot_be_shared_is_refused_in_one_line(launched: Launched) -> None:
    for name, message in (
        ("few", "--batch-size: expected at least 2, the number of processes, which share the examples of each batch"),
        ("compare", "earlybert compare works in one process, and this is one of 2"),
    ):
        first, second = launched.seen(name)
        assert first.status == second.status == 2
        assert first.said.startswith(f"earlybert: error: {message}") and first.said.count("\n") == 1
        assert second.said == ""
        assert not (launched.folder / name).exists()


# In one process


@given(st.lists(st.integers(1, 512), min_size=1, max_size=64), st.integers(1, 9))
def test_every_example_is_dealt_once_and_tokens_are_even(lengths: list[int], count: int) -> None:
    dealt = deal(lengths, count)
    assert dealt == deal(lengths, count)
    assert len(dealt) == count and sorted(place for places in dealt for place in places) == [*range(len(lengths))]
    tokens = [sum(lengths[place] for place in places) for places in dealt]
    assert max(tokens) - min(tokens) <= max(lengths)
    assert all(places == sorted(places) for places in dealt)
    assert all(dealt) or len(lengths) < count
    assert deal(lengths, 1) == [[*range(len(lengths))]]


def test_a_batch_without_labels_counts_for_nothing(tiny_bert: str) -> None:
    """The examples that a process has of a batch may all be without one, where the others' are not."""
    ids = Ragged.of([[2, 7], [2, 8, 9]])
    labels = Ragged.of([[NO_LABEL, NO_LABEL], [NO_LABEL, 1, 2]])
    both = EncodedExamples({"input_ids": ids}, {"input_ids": 0}, {}, {"labels": labels})
    one = EncodedExamples({"input_ids": Ragged.of([ids[1]])}, {"input_ids": 0}, {}, {"labels": Ragged.of([labels[1]])})
    settings = StageSettings("train", max_steps=1, learning_rate=1e-2, schedule="constant", logging_steps=1)
    found = []
    for examples in (both, one):
        torch.manual_seed(0)
        model = AutoModelForTokenClassification.from_pretrained(
            tiny_bert, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        order = TrainingOrder(len(examples), batch_size=1, accumulation_steps=2, seed=1)
        loop = TrainingLoop(ek.convert(model), examples, order, settings, torch.device("cpu"))
        loop.run()
        found.append((loop.history[0]["loss"], model.state_dict()))
    assert found[0][0] == pytest.approx(found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-6)


def test_processes_that_cannot_find_each_other(monkeypatch: pytest.MonkeyPatch, arguments: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"one of 2 processes \(WORLD_SIZE\), which cannot find each other"):
        finetune(arguments())


def test_what_one_process_does_is_done_as_it_is() -> None:
    assert processes.on_first(lambda: 3) == 3 and processes.gather("own") == ["own"] and processes.total(5) == 5
    assert processes.differing({"a": 1}) == []
    with pytest.raises(KeyError), processes.together():
        raise KeyError
    with pytest.raises(RuntimeError, match="gloo"), processes.joined():
        raise RuntimeError("gloo")


def test_commands_that_work_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    check_alone("this")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="this works in one process, and this is one of 3") as found:
        check_alone("this")
    assert not isinstance(found.value, ElsewhereError), "the first says it"
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ElsewhereError):
        check_alone("this")


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
@pytest.mark.parametrize("name", ["stock", "masked", "compact"])
def test_every_parameter_has_a_gradient(family: ModelFamily, name: str) -> None:
    """Of each head that the programs train: DistributedDataParallel waits for all. Layers may have lost all units."""
    tasks = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MaskedLM")
    for head in family.heads:
        if head.auto_class.removeprefix("AutoModelFor") not in tasks:
            continue
        model = tiny_model(cls=head.stock, **({"num_labels": 2} if head.labels is Labels.SPAN else {})).train()
        if name != "stock":
            ticket = some_ticket(model)
            ticket.heads[-1], ticket.neurons[0] = [], []
            ek.enable_gates(ek.convert(model))
            (ek.apply_ticket if name == "masked" else ek.compact)(model, ticket)
        model(**batch(LENGTHS), **labels_of(head)).loss.backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == [], head


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [_own_device(name) for name in (None, "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"] and chosen == [1, 1]
    with pytest.raises(UsageError, match="--device cuda:1: each of 1 processes has a GPU of its own"):
        _own_device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="process 2 of this machine has no GPU: there are 2"):
        _own_device(None)


def test_steps_of_several_processes_are_not_captured(
    tiny_bert: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop_module, "has_graphs", lambda device: True)
    monkeypatch.setattr(processes, "count", lambda: 2)
    caplog.set_level(logging.INFO, "earlybert")
    examples = EncodedExamples({"input_ids": Ragged.of([[2, 3]])}, {"input_ids": 0}, {"labels": torch.zeros(1).long()})
    model = ek.convert(AutoModelForTokenClassification.from_pretrained(tiny_bert))
    order = TrainingOrder(1, batch_size=1, accumulation_steps=1, seed=1)
    settings = StageSettings("train", max_steps=1, learning_rate=1e-2, schedule="constant")
    assert not TrainingLoop(model, examples, order, settings, torch.device("cpu")).captures
    assert "without CUDA graphs: several processes" in caplog.text
