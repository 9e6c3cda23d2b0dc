from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForQuestionAnswering

from earlybert import FinetuneArguments, compare, draw, evaluate, finetune, plot, predict, verify
from earlybert.errors import Interrupted, UsageError
from earlybert.programs.run import Run
from earlybert.tasks import TASKS, Source
from tests.helpers.squad import qa, written
from tests.helpers.toy import FILLERS, WORDS

SQUAD, SQUAD_V2 = TASKS["squad"], TASKS["squad_v2"]
Make = Callable[..., FinetuneArguments]


def _toy_squad(folder: Path, words: int | None = None) -> str:
    """Makes SQuAD's files: the answer is the one word that is no filler, in contexts of as many words, or up to 31."""
    length = words
    generator = random.Random(0)
    special = [*WORDS[0], *WORDS[1]]
    for split, count in (("train", 96), ("dev", 40)):
        paragraphs = []
        for number in range(count):
            words = generator.choices(FILLERS, k=generator.randint(3, 30) if length is None else length - 1)
            place = generator.randint(0, len(words))
            words.insert(place, generator.choice(special))
            start = len(" ".join([*words[:place], ""]))
            answer = (words[place], start)
            paragraphs.append({"context": " ".join(words), "qas": [qa(f"{split}{number}", "the film", [answer])]})
        written(folder, {"version": "1.1", "data": [{"title": "T", "paragraphs": paragraphs}]}, f"{split}-v1.1.json")
    return str(folder)


@pytest.fixture(scope="module")
def toy_squad(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _toy_squad(tmp_path_factory.mktemp("toy-squad"))


@pytest.fixture
def squad_arguments(arguments: Make, toy_squad: str) -> Make:
    def make(**changes: Any) -> FinetuneArguments:
        return arguments(**{"task": "squad", "data_dir": toy_squad, "max_length": 24, "doc_stride": 6, **changes})

    return make


@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_a_whole_run_on_questions(squad_arguments: Make, tmp_path: Path, kernels: str) -> None:
    args = squad_arguments(kernels=kernels, max_steps=60)
    metrics = finetune(args)
    assert metrics["main_metric"] == "f1"
    assert metrics["eval"]["exact_match"] >= 0.8, "one word is no filler"
    dev = str(Path(args.data_dir) / "dev-v1.1.json")
    assert evaluate(args.output_dir, dev) == pytest.approx(metrics["eval"], rel=1e-5)
    assert predict(args.output_dir, dev, str(tmp_path / "p.jsonl")) == 40
    answers = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    predictions = json.loads((Path(args.output_dir) / "predictions.json").read_text())
    assert {answer["id"]: answer["prediction_text"] for answer in answers} == predictions
    content = json.loads(Path(dev).read_text())
    for question in content["data"][0]["paragraphs"][0]["qas"]:
        del question["answers"]
    unanswered = str(written(tmp_path, content, "unanswered.json"))
    assert predict(args.output_dir, unanswered, str(tmp_path / "u.jsonl")) == 40
    assert (tmp_path / "u.jsonl").read_bytes() == (tmp_path / "p.jsonl").read_bytes()
    assert metrics["examples"] == {"train": 96, "eval": {"dev": 40}}
    out = Path(args.output_dir)
    predictions = json.loads((out / "predictions.json").read_text())
    judged = SQUAD.judge(predictions, SQUAD.load(Source(Path(args.data_dir))).evals[""])
    assert judged | {"eval_loss": metrics["eval"]["eval_loss"]} == metrics["eval"]
    assert "predictions.json" in (out / "SHA256SUMS").read_text()
    model = AutoModelForQuestionAnswering.from_pretrained(out / "model")
    parameters = metrics["parameters"]
    assert sum(p.numel() for p in model.parameters()) == parameters["trained"] < parameters["dense"]
    assert all(finding.holds for finding in verify(str(out)))
    assert len(plot(str(out))) == 2
    ticket = draw(*_gates(out), neuron_ratio=0.5)
    assert sum(map(len, ticket.neurons)) < sum(metrics["ticket"]["neurons"])

    further = {"method": "dense", "max_steps": 1, "learning_rate": 1e-9}
    again = finetune(replace(args, output_dir=str(tmp_path / "again"), model=str(out / "model"), **further))
    assert again["eval"]["f1"] == pytest.approx(metrics["eval"]["f1"], abs=0.03), "the head is the checkpoint's"


def _gates(folder: Path) -> Any:
    from earlybert.search.drawing import read_gates

    return read_gates(folder)


def test_kernels_and_stock_learn_the_same(squad_arguments: Make, tmp_path: Path) -> None:
    # All of one length: the stock head lets padding take part in the softmax.
    data = _toy_squad(tmp_path, words=12)
    losses = []
    for kernels in ("auto", "off"):
        args = squad_arguments(kernels=kernels, method="dense", data_dir=data, output_dir=str(tmp_path / kernels))
        losses.append(finetune(replace(args, model=_without_dropout(args.model, tmp_path)))["train_log"][-1]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def _without_dropout(model: str, folder: Path) -> str:
    import shutil

    copy = folder / "no-dropout"
    shutil.copytree(model, copy, dirs_exist_ok=True)
    config = json.loads((copy / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (copy / "config.json").write_text(json.dumps(config))
    return str(copy)


def test_a_resumed_run_on_questions_is_the_uninterrupted_one(
    squad_arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = squad_arguments(output_dir=str(tmp_path / "whole"))
    finetune(whole)
    args = squad_arguments(output_dir=str(tmp_path / "stopped"))
    listening = Run._train

    def stop(run: Run, *arguments: Any) -> Any:
        run.interrupt.made = True
        return listening(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_train", stop)
        with pytest.raises(Interrupted):
            finetune(args)
    finetune(replace(args, resume=True))
    for name in ("predictions.json", "nbest_predictions.json", "ticket.json", "model/model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()


def test_methods_are_compared_on_questions(squad_arguments: Make) -> None:
    args = squad_arguments(max_steps=4, search_steps=4)
    comparison = compare(args, [("dense", "off"), ("earlybert", "auto"), ("random", "auto")], [1])
    assert comparison["metric"] == "f1"
    assert [row["method"] for row in comparison["rows"]] == ["dense", "earlybert", "random"]


def test_flags_of_questions_mean_nothing_to_sentences(arguments: Make, squad_arguments: Make) -> None:
    with pytest.raises(UsageError, match="--doc-stride says nothing to task sst2"):
        finetune(arguments(doc_stride=3))
    with pytest.raises(UsageError, match="--null-score-diff-threshold: every question of task squad has an answer"):
        finetune(squad_arguments(null_score_diff_threshold=1.0))


def test_the_usual_length_is_the_tasks(squad_arguments: Make) -> None:
    with pytest.raises(UsageError, match=r"--max-length: expected at most 32, .* found 384"):
        finetune(squad_arguments(max_length=None))
    args = squad_arguments(max_length=None)
    assert args.resolved(SQUAD.max_length).input_length == 384
    with pytest.raises(ValueError, match="call resolved first"):
        _ = args.input_length
