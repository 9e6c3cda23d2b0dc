"""The mean loss of an evaluation is that of stock transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

import earlybert_kernels as ek
from earlybert import FinetuneArguments, evaluate, finetune
from earlybert.tasks import TASKS, MaskedLMTask, Sentences, Task
from earlybert.tasks.columns import Table
from earlybert.tasks.questions import Answer, Question, Questions
from earlybert.training.batches import NO_LABEL, collate
from earlybert.training.data import EncodedExamples
from earlybert.training.evaluation import predict
from tests.helpers.texts import encoded as masked

Make = Callable[..., FinetuneArguments]
CPU = torch.device("cpu")
TEXTS = ["a film", "the film was good and the end was not", "bad", "the film was bad , and so it goes on and on"]


def questions() -> Questions:
    """Windows of different lengths, with answers and without."""
    contexts = [" ".join([text] * times) for text, times in zip(TEXTS, (1, 2, 3, 1), strict=True)]
    answers = [(Answer("film", 2),), (Answer("good", 13),), (), (Answer("bad", 13),)]
    return Questions(
        [Question(str(i), "the film", c, a) for i, (c, a) in enumerate(zip(contexts, answers, strict=True))]
    )


def split(task: Task, tiny_bert: str) -> EncodedExamples:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    if task.name == "mlm":
        return masked(tiny_bert, *TEXTS, max_length=16, probability=0.5).as_held_out()
    if task.name == "squad_v2":
        return task.encode(tokenizer, questions(), 16)
    if task.name == "token-classification":
        words = [text.split() for text in TEXTS]
        return task.encode(
            tokenizer,
            Table([tuple(row) for row in words], [[task.labels[len(w) % 2] for w in row] for row in words]),
            16,
        )
    if task.name == "multilabel":
        return task.encode(tokenizer, Table([(text,) for text in TEXTS], [["a"], [], ["b", "a"], ["b"]]), 16)
    labels: Any = [0.5, 4.0, 1.25, 2.0] if task.name == "stsb" else [2, 0, 1, 2]
    return task.encode(tokenizer, Sentences([(text, "film") for text in TEXTS], labels), 16)


@pytest.mark.parametrize(
    "task",
    [
        TASKS["mnli"],
        TASKS["stsb"],
        TASKS["squad_v2"],
        MaskedLMTask(),
        replace(TASKS["multilabel"], labels=("a", "b")),
        replace(TASKS["token-classification"], labels=("O", "B-x")),
    ],
    ids=lambda task: task.name,
)
@pytest.mark.parametrize("kernels", ["off", "auto"])
def test_the_loss_is_that_of_stock_transformers(tiny_bert: str, task: Task, kernels: str) -> None:
    examples = split(task, tiny_bert)
    config = AutoConfig.from_pretrained(tiny_bert)
    task.configure(config)
    model = task.model_class.from_config(config).eval()
    total = weight = 0.0
    with torch.no_grad():
        for index in range(len(examples)):  # one by one: stock losses of questions count padding as places of answers
            batch = collate(examples, [index])
            own = int((batch["labels"] != NO_LABEL).sum()) if "labels" in examples.of_tokens else 1
            total, weight = total + model(**batch).loss.item() * own, weight + own
    assert weight > len(TEXTS) or "labels" not in examples.of_tokens
    if kernels == "auto":
        ek.convert(model)
    outputs = predict(model, examples, task.outputs, batch_size=3, pad_to=None, dtype=torch.float32, device=CPU)
    assert task.loss(outputs, examples) == pytest.approx(total / weight, rel=1e-5)
    assert task.evaluate(outputs, examples).metrics["eval_loss"] == task.loss(outputs, examples)


def test_every_evaluation_has_the_loss_without_another_forward_pass(
    arguments: Make, toy_sst2: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from earlybert.tasks import SentenceTask

    passes = []
    outputs = SentenceTask.outputs

    def note(task: SentenceTask, model: Any, batch: Any, lengths: Any) -> Any:
        hook = model.register_forward_hook(lambda *_: passes.append(len(lengths)))
        found = outputs(task, model, batch, lengths)
        hook.remove()
        return found

    monkeypatch.setattr(SentenceTask, "outputs", note)
    args = arguments(
        method="dense", eval_strategy="steps", eval_steps=6, eval_batch_size=16, load_best_model_at_end=True,
        metric_for_best_model="loss",
    )  # fmt: skip
    found = finetune(args)
    assert passes == [16, 16, 8] * 2
    best = min(found["curve"], key=lambda entry: entry["eval_loss"])
    assert found["best"] == {"step": best["step"], "eval_loss": best["eval_loss"]}
    assert found["eval"] == {name: best[name] for name in ("accuracy", "eval_loss")}
    again = evaluate(args.output_dir, str(Path(toy_sst2) / "dev.tsv"))
    assert again == pytest.approx(found["eval"], rel=1e-5)
