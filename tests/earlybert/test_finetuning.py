from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import earlybert_kernels as ek
from earlybert import FinetuneArguments, PretrainArguments, draw, finetune
from earlybert.errors import Interrupted, UsageError
from earlybert.programs.run import Run
from earlybert.run_directory import RunDirectory
from earlybert.training.loop import TrainingLoop
from tests.helpers.toy import LAYERS, NEURONS, PER_HEAD, PER_NEURON

Make = Callable[..., FinetuneArguments]
DENSE_FILES = {".lock", "SHA256SUMS", "arguments.json", "metrics.json", "model"}
FILES = {*DENSE_FILES, "gates.safetensors", "scores.safetensors", "search.png", "ticket.json", "ticket.png"}


@pytest.mark.parametrize("kernels", ["auto", "off"])
@pytest.mark.parametrize("method", ["earlybert", "dense", "random", "inverted"])
def test_a_whole_run(arguments: Make, method: str, kernels: str) -> None:
    args = arguments(method=method, kernels=kernels, max_steps=80, learning_rate=2e-3)
    metrics = finetune(args)
    out = Path(args.output_dir)
    assert {path.name for path in out.iterdir()} == (DENSE_FILES if method == "dense" else FILES)
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert (metrics["method"], metrics["kernels"], metrics["seed"]) == (method, kernels, 42)
    assert metrics["eval"]["accuracy"] >= 0.8, "two words decide the label"
    assert metrics["steps"]["train"] == 80
    assert set(metrics["backend"]) == (
        {"embedding_layer_norm", "attention_sublayer", "feed_forward_sublayer"} if kernels == "auto" else set()
    )
    seconds = metrics["seconds"]
    assert seconds["total"] == seconds["search"] + seconds["train"]
    assert all(value >= 0 for value in seconds.values())

    model = AutoModelForSequenceClassification.from_pretrained(out / "model")
    count = sum(p.numel() for p in model.parameters())
    assert count == metrics["parameters"]["trained"]
    assert AutoTokenizer.from_pretrained(out / "model")("good film")["input_ids"][0] == 2
    assert model.config.id2label == {0: "negative", 1: "positive"}
    if method == "dense":
        assert count == metrics["parameters"]["dense"]
        assert metrics["ticket"] is None
        assert metrics["steps"]["search"] == 0
        return
    ticket = ek.Ticket.load(out / "ticket.json")
    assert [len(units) for units in ticket.heads] == metrics["ticket"]["heads"] == [3] * LAYERS
    assert [len(units) for units in ticket.neurons] == metrics["ticket"]["neurons"]
    assert sum(metrics["ticket"]["neurons"]) == LAYERS * NEURONS - round(0.4 * LAYERS * NEURONS)
    gone = LAYERS * PER_HEAD + round(0.4 * LAYERS * NEURONS) * PER_NEURON
    assert metrics["parameters"]["dense"] - count == gone
    assert seconds["search"] > 0
    assert metrics["steps"]["search"] == metrics["search"]["step"] <= 8


def test_methods_differ_in_their_ticket_alone(arguments: Make, tmp_path: Path) -> None:
    tickets = {}
    for method in ("earlybert", "random", "inverted"):
        args = arguments(method=method, output_dir=str(tmp_path / method), max_steps=1)
        finetune(args)
        tickets[method] = ek.Ticket.load(tmp_path / method / "ticket.json")
    gates = {method: load_file(tmp_path / method / "gates.safetensors") for method in tickets}
    for method in ("random", "inverted"):
        assert all(torch.equal(gates[method][name], gate) for name, gate in gates["earlybert"].items())
        assert tickets[method] != tickets["earlybert"]
        for kind in ("heads", "neurons"):
            widths = [[len(units) for units in getattr(tickets[m], kind)] for m in (method, "earlybert")]
            assert widths[0] == widths[1]
    heads, neurons = (
        [gates["earlybert"][f"{kind}.{layer}"] for layer in range(LAYERS)] for kind in ("head_gates", "neuron_gates")
    )
    assert draw(heads, neurons, head_ratio=0.25) == tickets["earlybert"]


def test_training_starts_from_the_weights_that_the_search_started_from(
    arguments: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights at the first training step are those of the fresh model, cut by the ticket."""
    starts: list[dict[str, torch.Tensor]] = []
    run = TrainingLoop.run

    def spy(loop: TrainingLoop, *args: Any) -> None:
        starts.append({name: p.detach().clone() for name, p in loop.model.named_parameters()})
        run(loop, *args)

    monkeypatch.setattr(TrainingLoop, "run", spy)
    for kernels in ("auto", "off"):
        starts.clear()
        args = arguments(kernels=kernels, overwrite_output_dir=True, max_steps=1)
        finetune(args)
        fresh, rewound = starts
        ticket = ek.Ticket.load(Path(args.output_dir) / "ticket.json")
        assert "head_gates" not in " ".join(rewound)
        assert torch.equal(rewound["classifier.weight"], fresh["classifier.weight"])
        name = "bert.encoder.layer.1.intermediate.dense.weight"
        assert torch.equal(rewound[name], fresh[name][ticket.neurons[1]])


def test_every_method_sees_the_same_batches(arguments: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, list] = {}
    step = TrainingLoop._train_step

    def spy(loop: TrainingLoop, batches: list[list[int]]) -> None:
        seen.setdefault(f"{current}/{loop.settings.name}", []).append(batches)
        step(loop, batches)

    monkeypatch.setattr(TrainingLoop, "_train_step", spy)
    for method, kernels in (("dense", "off"), ("dense", "auto"), ("earlybert", "auto"), ("random", "off")):
        current = f"{method}-{kernels}"
        finetune(arguments(method=method, kernels=kernels, output_dir=str(tmp_path / current)))
    reference = seen["dense-off/train"]
    assert len(reference) == 12
    assert all(batches == reference[: len(batches)] for batches in seen.values())
    assert len(seen) == 6


def outcome(args: FinetuneArguments) -> dict[str, Any]:
    """All of a finished run that has to be the same bit by bit."""
    out = Path(args.output_dir)
    metrics = json.loads((out / "metrics.json").read_text())
    return {
        "weights": (out / "model" / "model.safetensors").read_bytes(),
        "gates": load_file(out / "gates.safetensors")["neuron_gates.0"].tolist() if args.searches else None,
        "ticket": (out / "ticket.json").read_text() if args.method != "dense" else None,
        **{name: metrics[name] for name in ("eval", "search", "steps", "train_log", "parameters")},
    }


def interrupt_at(monkeypatch: pytest.MonkeyPatch, stage: str, step: int) -> None:
    train_step = TrainingLoop._train_step

    def strike(loop: TrainingLoop, batches: list[list[int]]) -> None:
        train_step(loop, batches)
        if loop.settings.name == stage and loop.step + 1 == step:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainingLoop, "_train_step", strike)


@pytest.mark.parametrize(
    ("method", "kernels", "stage", "step"),
    [
        ("earlybert", "auto", "search", 5),
        ("earlybert", "auto", "train", 1),
        ("earlybert", "auto", "train", 7),
        ("random", "off", "search", 5),
        ("inverted", "off", "train", 7),
        ("dense", "auto", "train", 12),
        ("dense", "off", "train", 7),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, kernels: str, stage: str, step: int
) -> None:
    def make(name: str, **changes: Any) -> FinetuneArguments:
        return arguments(
            method=method,
            kernels=kernels,
            output_dir=str(tmp_path / name),
            gradient_accumulation_steps=2,
            early_bird_threshold=0.0,
            **changes,
        )

    handler = signal.getsignal(signal.SIGINT)
    whole = make("whole")
    finetune(whole)
    with monkeypatch.context() as patch:
        interrupt_at(patch, stage, step)
        with pytest.raises(Interrupted, match=rf"interrupted in stage {stage} after {step} of .* checkpoint"):
            finetune(make("parts"))
    assert (tmp_path / "parts" / "checkpoint.pt").exists()
    assert not (tmp_path / "parts" / "metrics.json").exists()
    torch.manual_seed(12345)
    resumed = make("parts", resume=True)
    finetune(resumed)
    assert outcome(resumed) == outcome(whole)
    assert not (tmp_path / "parts" / "checkpoint.pt").exists()
    assert signal.getsignal(signal.SIGINT) is handler


def test_resumes_from_a_periodic_checkpoint_after_a_crash(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = arguments(output_dir=str(tmp_path / "whole"))
    finetune(whole)
    parts = arguments(output_dir=str(tmp_path / "parts"), checkpoint_steps=3)
    train_step = TrainingLoop._train_step

    def crash(loop: TrainingLoop, batches: list[list[int]]) -> None:
        if loop.settings.name == "train" and loop.step == 8:
            raise RuntimeError("power cut")
        train_step(loop, batches)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_train_step", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            finetune(parts)
    assert torch.load(tmp_path / "parts" / "checkpoint.pt")["loop"]["step"] == 6
    resumed = arguments(output_dir=str(tmp_path / "parts"), resume=True)
    finetune(resumed)
    assert outcome(resumed) == outcome(whole)


def test_the_same_run_twice_is_the_same(arguments: Make, tmp_path: Path) -> None:
    first, second = (arguments(output_dir=str(tmp_path / name)) for name in ("first", "second"))
    finetune(first)
    torch.manual_seed(99)
    finetune(second)
    assert outcome(first) == outcome(second)


def test_resuming_a_finished_run_returns_it(arguments: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = finetune(arguments(method="dense"))
    monkeypatch.setattr(Run, "execute", lambda run: pytest.fail("it ran again"))
    assert finetune(arguments(method="dense", resume=True)) == metrics


def test_resuming_nothing_starts_the_run(arguments: Make) -> None:
    assert finetune(arguments(method="dense", resume=True))["steps"]["train"] == 12


def test_a_run_is_not_resumed_with_other_arguments(arguments: Make) -> None:
    finetune(arguments(method="dense"))
    with pytest.raises(UsageError, match=r"started with --learning-rate 0.005, and is now given 0.001"):
        finetune(arguments(method="dense", resume=True, learning_rate=1e-3))
    with pytest.raises(UsageError, match=r"started with --method dense, and is now given earlybert"):
        finetune(arguments(resume=True))


def test_a_run_of_a_version_without_an_argument_goes_on_with_its_default(arguments: Make, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    given = asdict(arguments())
    earlier = {name: value for name, value in given.items() if name != "ticket_epochs"}
    with directory.released():
        directory.start(earlier, resume=False)
    directory.check(given, resume=True, overwrite=False)
    with pytest.raises(UsageError, match=r"started with --ticket-epochs 2.0, and is now given 3.0"):
        directory.check(given | {"ticket_epochs": 3.0}, resume=True, overwrite=False)


def test_a_pretraining_goes_on_with_its_own_default(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    given = asdict(PretrainArguments(train_file="texts.txt", output_dir=str(directory.path)))
    with directory.released():
        directory.start({name: value for name, value in given.items() if name != "warmup_ratio"}, resume=False)
    directory.check(given, resume=True, overwrite=False)


def test_a_used_folder_is_refused(arguments: Make) -> None:
    args = arguments(method="dense")
    finetune(args)
    with pytest.raises(FileExistsError, match="holds a finished run.*--resume.*--overwrite-output-dir"):
        finetune(args)


def test_a_folder_with_other_files_is_refused(arguments: Make, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other files"):
        finetune(arguments(method="dense"))


def test_files_beside_a_run_survive_its_being_overwritten(arguments: Make, tmp_path: Path) -> None:
    finetune(arguments(method="dense", max_steps=1))
    (tmp_path / "run" / "notes.txt").write_text("mine")
    finetune(arguments(method="dense", max_steps=1, overwrite_output_dir=True))
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_overwriting_leaves_nothing_of_the_run_before(arguments: Make, tmp_path: Path) -> None:
    finetune(arguments())
    finetune(arguments(method="dense", overwrite_output_dir=True))
    assert {path.name for path in (tmp_path / "run").iterdir()} == DENSE_FILES


def test_a_given_ticket_is_trained(arguments: Make, tmp_path: Path) -> None:
    ticket = ek.Ticket([[0], [1, 2], [3]], [[5], [0, 1, 2], list(range(NEURONS))])
    ticket.save(tmp_path / "mine.json")
    metrics = finetune(arguments(ticket=str(tmp_path / "mine.json")))
    assert ek.Ticket.load(tmp_path / "run" / "ticket.json") == ticket
    assert metrics["steps"]["search"] == 0
    assert metrics["search"] is None
    assert metrics["ticket"]["neurons"] == [1, 3, NEURONS]
    metrics = finetune(
        arguments(method="random", ticket=str(tmp_path / "mine.json"), output_dir=str(tmp_path / "random"))
    )
    assert metrics["ticket"]["neurons"] == [1, 3, NEURONS]
    assert ek.Ticket.load(tmp_path / "random" / "ticket.json") != ticket


def test_the_early_bird_ends_the_search(arguments: Make) -> None:
    metrics = finetune(arguments(early_bird_threshold=0.99, early_bird_patience=1, min_search_share=0.5))
    assert metrics["search"]["drawn_by"] == "early bird"
    assert metrics["steps"]["search"] == 4
    metrics = finetune(arguments(early_bird_threshold=0.0, overwrite_output_dir=True))
    assert metrics["search"]["drawn_by"] == "limit"
    assert [check["step"] for check in metrics["search"]["checks"]] == [4, 6, 8]


def test_epochs_are_counted_in_examples(arguments: Make) -> None:
    metrics = finetune(
        arguments(max_steps=None, search_steps=None, max_train_examples=41, num_train_epochs=1.5, search_epochs=0.5)
    )
    # 41 examples are 6 batches of 8.
    assert metrics["steps"] == {"search": 3, "train": 9}
    assert metrics["examples"]["train"] == 41


def test_default_epochs_are_three_for_dense_and_two_for_tickets(arguments: Make) -> None:
    assert arguments(method="dense").epochs == 3
    assert arguments(method="random").epochs == 2
    assert arguments(method="dense", num_train_epochs=1.0).epochs == 1


def test_a_compact_model_can_be_trained_further(arguments: Make, tmp_path: Path) -> None:
    first = finetune(arguments())
    second = finetune(
        arguments(method="dense", model=str(tmp_path / "run" / "model"), output_dir=str(tmp_path / "further"))
    )
    assert second["parameters"]["dense"] == second["parameters"]["trained"] == first["parameters"]["trained"]


def test_a_regression(arguments: Make, tmp_path: Path) -> None:
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    rows = [f"0\tg\tf\ty\t0\ta\tb\tgood film\t{'good' if i % 2 else 'bad'} film\t{5 * (i % 2)}\n" for i in range(40)]
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text(header + "".join(rows))
    metrics = finetune(arguments(task="stsb", data_dir=str(tmp_path), max_steps=40))
    assert metrics["eval"]["pearson"] > 0.9
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert (model.config.problem_type, model.config.num_labels) == ("regression", 1)
    # From there to a task with classes, and back: the loss is the new task's.
    sst2, back = str(tmp_path / "sst2"), str(tmp_path / "back")
    finetune(arguments(model=str(tmp_path / "run" / "model"), method="dense", max_steps=2, output_dir=sst2))
    config = AutoConfig.from_pretrained(f"{sst2}/model")
    assert (config.problem_type, config.num_labels) == ("single_label_classification", 2)
    stsb = {"task": "stsb", "data_dir": str(tmp_path), "max_steps": 2, "output_dir": back}
    finetune(arguments(model=f"{sst2}/model", method="dense", **stsb))
    config = AutoConfig.from_pretrained(f"{back}/model")
    assert (config.problem_type, config.num_labels) == ("regression", 1)


def test_bfloat16_runs(arguments: Make) -> None:
    metrics = finetune(arguments(dtype="bfloat16", max_steps=80, learning_rate=2e-3))
    assert metrics["eval"]["accuracy"] >= 0.8
    gates = load_file(Path(metrics["arguments"]["output_dir"]) / "gates.safetensors")
    assert all(gate.dtype == torch.float32 and (gate != 1).any() for gate in gates.values())
