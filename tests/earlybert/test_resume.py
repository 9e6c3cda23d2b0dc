"""A run is continued with what it was started with, even where the files keep their names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import earlybert_kernels as ek
from earlybert import FinetuneArguments, finetune
from earlybert.errors import Interrupted, UsageError
from earlybert.programs import preparation
from earlybert.search.search import Search
from earlybert.training.checkpoints import fingerprint
from earlybert.training.loop import TrainingLoop
from tests.helpers.model_folder import edit_config, edit_weights
from tests.helpers.toy import NEURONS

Make = Callable[..., FinetuneArguments]


@pytest.fixture
def own(arguments: Make, tiny_bert: str, toy_sst2: str, tmp_path: Path) -> Make:
    """Runs whose model, data and ticket may be changed."""
    model, data = (shutil.copytree(path, tmp_path / name) for path, name in ((tiny_bert, "model"), (toy_sst2, "data")))
    return lambda **changes: arguments(model=str(model), data_dir=str(data), **changes)


def stop(args: FinetuneArguments, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """Runs until the third step of a stage, where the user interrupts."""
    step = TrainingLoop._train_step

    def stopping(loop: TrainingLoop, batches: list[list[int]]) -> None:
        step(loop, batches)
        if loop.settings.name == stage and loop.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_train_step", stopping)
        with pytest.raises((KeyboardInterrupt, Interrupted)):
            finetune(args)
    assert (Path(args.output_dir) / "checkpoint.pt").exists()


def flip_labels(path: Path) -> None:
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *(row[:-1] + "10"[int(row[-1])] for row in rows)]) + "\n")


def add_row(path: Path) -> None:
    path.write_text(path.read_text() + "a row more\t1\n")


def swap_words(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    used = [word for word in words if word.isalpha() and len(word) > 1]
    words[used[0]], words[used[1]] = words[used[1]], words[used[0]]
    path.write_text(json.dumps(tokenizer))


def change_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (name,) = (name for name in weights if name.endswith("layer.0.output.dense.bias"))
    edit_weights(folder, **{name: weights[name] + 1e-3})


@pytest.mark.parametrize("stage", ["search", "train"])
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda folder: flip_labels(folder / "data" / "train.tsv"), "the training examples"),
        (lambda folder: add_row(folder / "data" / "train.tsv"), "the training examples"),
        (lambda folder: flip_labels(folder / "data" / "dev.tsv"), "the evaluation examples"),
        (lambda folder: change_weights(folder / "model"), "the model's weights"),
        (lambda folder: edit_config(folder / "model", hidden_dropout_prob=0.2), "the model's config"),
        (lambda folder: swap_words(folder / "model"), "the training examples and the evaluation examples"),
    ],
    ids=["labels", "rows", "dev", "weights", "dropout", "tokenizer"],
)
def test_a_run_is_not_continued_with_other_files_in_the_same_place(
    own: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, change: Callable[[Path], None], what: str
) -> None:
    args = own(checkpoint_steps=1)
    stop(args, monkeypatch, stage)
    kept = (Path(args.output_dir) / "checkpoint.pt").read_bytes()
    change(tmp_path)
    with pytest.raises(UsageError, match=f"--resume: {what} of the run in .* are not those that it was started with"):
        finetune(own(checkpoint_steps=1, resume=True))
    assert (Path(args.output_dir) / "checkpoint.pt").read_bytes() == kept


def test_nor_with_another_ticket(own: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "given.json"
    heads, neurons = [[0, 1]] * 3, [[*range(40)]] * 3
    ek.Ticket(heads, neurons).save(path)
    stop(own(ticket=str(path), checkpoint_steps=1), monkeypatch, "train")
    ek.Ticket([[0, 2], *heads[1:]], neurons).save(path)
    with pytest.raises(UsageError, match="--resume: the ticket of the run"):
        finetune(own(ticket=str(path), resume=True))


def test_an_untouched_run_goes_on_and_one_in_another_environment_says_so(
    own: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = own(checkpoint_steps=1)
    stop(args, monkeypatch, "search")
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "versions", lambda: {"torch": "0.0"})
        stop(own(checkpoint_steps=1, resume=True), patch, "train")
    metrics = finetune(own(resume=True))
    (warning,) = metrics["warnings"]
    assert warning.startswith("the run was continued in another environment: ")
    assert f"versions torch 0.0 and now {metrics['versions']['torch']}" in warning


def test_units_are_left_out_as_if_it_had_not_been_interrupted(
    own: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    knobs = {"gate_penalty": "proximal", "gate_learning_rate": 0.1, "gate_l1": 1e-3, "early_bird_interval": 1}
    knobs |= {"search_steps": 6, "early_bird_threshold": 0.0, "checkpoint_steps": 1}
    left_out = []
    compute_only = Search._compute_only
    monkeypatch.setattr(
        Search, "_compute_only", lambda search, ticket: (left_out.append(ticket), compute_only(search, ticket))
    )
    whole = finetune(own(output_dir=str(tmp_path / "whole"), **knobs))
    before = left_out.copy()
    assert before and sum(map(len, before[-1].neurons)) < 3 * NEURONS
    left_out.clear()
    stop(own(**knobs), monkeypatch, "search")
    seen = len(left_out)
    metrics = finetune(own(resume=True, **knobs))
    assert left_out[:seen] + left_out[seen + 1 :] == before and left_out[seen] == left_out[seen - 1]
    for name in ("eval", "ticket", "train_log", "search"):
        assert metrics[name] == whole[name], name
    (warning,) = finetune(own(overwrite_output_dir=True, **(knobs | {"gate_l1": 0.0})))["warnings"]
    assert warning.startswith("no gate has reached 0 by proximal steps; try a higher --gate-learning-rate")


@pytest.mark.parametrize("stage", ["search", "train"])
def test_scores_weights_and_teacher_are_as_if_it_had_not_been_interrupted(
    own: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    knobs = {"score": "fisher", "rewind_steps": 1, "distillation": 0.5, "checkpoint_steps": 1}
    knobs["distillation_hidden_states"] = stage == "train"
    without = {"distillation": 0.0, "distillation_hidden_states": False}
    whole = finetune(own(output_dir=str(tmp_path / "whole"), **knobs))
    stop(own(**knobs), monkeypatch, stage)
    metrics = finetune(own(resume=True, **knobs))
    for name in ("eval", "ticket", "train_log", "search"):
        assert metrics[name] == whole[name], name
    unmixed = finetune(own(output_dir=str(tmp_path / "unmixed"), **(knobs | without)))
    assert unmixed["ticket"] == whole["ticket"] and unmixed["train_log"] != whole["train_log"]


def test_fingerprints_tell_values_apart() -> None:
    one, two = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])
    values = [
        one, two, one.double(), one[None], [one], [one[:1], one[1:]], {"a": one}, {"b": one}, {"a": one, "b": two},
        {"a": two, "b": one}, None, [], [[1, 2], [3]], [[1], [2, 3]],
    ]  # fmt: skip
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint({"a": one, "b": two}) == fingerprint({"b": two.clone(), "a": one.clone()})
