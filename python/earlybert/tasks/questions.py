"""Tasks that ask for the stretch of a text that answers a question."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForQuestionAnswering, PreTrainedModel

from ..errors import UsageError
from ..training.data import EncodedExamples
from ..training.ragged import Ragged
from .base import Judgement, Task
from .heads import renew
from .spans import Span, best_spans, merge
from .squad_metrics import exact_match, f1
from .tokenizing import flat, map_cached, tokenizer_key

logger = logging.getLogger(__name__)

#: Tokens of a question, of which longer ones are cut; in short windows it is the share of one.
_LONGEST_QUESTION, _QUESTION_SHARE = 64, 1 / 4
#: The place of [CLS], which is where no answer is said to be.
_NOWHERE = 0


@dataclass(frozen=True)
class Answer:
    """An answer and the character of the context where it begins."""

    text: str
    start: int

    def is_in(self, context: str) -> bool:
        """Whether the context has the answer there, and there is one."""
        end = self.start + len(self.text)
        return 0 <= self.start < len(context) and bool(self.text.strip()) and context[self.start : end] == self.text


@dataclass(frozen=True)
class Question:
    """A question on a context, and its answers: none where there is none."""

    id: str
    text: str
    context: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Questions:
    """One split of a task."""

    items: list[Question]

    def __len__(self) -> int:
        return len(self.items)

    def first(self, count: int | None) -> Questions:
        """See `Examples.first`."""
        return self if count is None else Questions(self.items[:count])


@dataclass(frozen=True, kw_only=True)
class EncodedWindows(EncodedExamples):
    """Windows on contexts, each with its question.

    Attributes:
        questions: the split.
        question_of: the number of each window's question, int64 `(windows,)`.
        offsets: per window, the characters of the context that each token stands for, int64 `(tokens, 2)`; -1 where it
            is none of the context's.
    """

    questions: Questions
    question_of: np.ndarray
    offsets: list[np.ndarray]

    def contents(self) -> dict[str, Any]:
        """See `EncodedExamples.contents`: with the texts that answers are judged by."""
        return super().contents() | {"questions": [astuple(each) for each in self.questions.items]}


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringTask(Task):
    """A task whose answers are stretches of a context.

    Attributes:
        unanswerable: whether some questions have no answer, as in SQuAD 2.0.
        doc_stride: tokens that neighbouring windows on a long context share; None for a third of `max_length`.
        null_threshold: no answer is given where having none scores more than so much above the best answer.
        best_size: spans that are looked at of each question.
        max_answer_length: tokens of the longest answer.
    """

    unanswerable: bool
    main_metric: str = "f1"
    max_length: int = 384
    doc_stride: int | None = None
    null_threshold: float = 0.0
    best_size: int = 20
    max_answer_length: int = 30

    @property
    def model_class(self) -> type[Any]:
        """See `Task.model_class`."""
        return AutoModelForQuestionAnswering

    @property
    def metric_names(self) -> tuple[str, ...]:
        """See `Task.metric_names`."""
        return "exact_match", "f1"

    def with_options(
        self, *, doc_stride: int | None = None, null_score_diff_threshold: float | None = None, **options: Any
    ) -> Self:
        """See `Task.with_options`."""
        task = super().with_options(**options)
        if null_score_diff_threshold is None:
            return replace(task, doc_stride=doc_stride)
        if not self.unanswerable:
            raise UsageError(f"--null-score-diff-threshold: every question of task {self.name} has an answer")
        return replace(task, doc_stride=doc_stride, null_threshold=null_score_diff_threshold)

    def configure(self, config: Any) -> None:
        """See `Task.configure`."""
        config.num_labels = 2  # a start and an end
        config.problem_type = None

    def match_head(self, model: PreTrainedModel, absent: set[str], labels: Mapping[int, str], seed: int) -> None:
        """See `Task.match_head`."""
        is_new = renew(model, absent, seed)
        logger.info("head: %s", "new; the checkpoint has none for questions" if is_new else "the checkpoint's")

    def encode(self, tokenizer: Any, examples: Questions, max_length: int) -> EncodedWindows:
        """See `Task.encode`. Contexts are cut into windows; a window without the answer is answered at [CLS]."""
        if not tokenizer.is_fast:
            raise UsageError(
                f"task {self.name} needs a fast tokenizer, which knows the characters of each token; "
                f"{type(tokenizer).__name__} does not"
            )
        stride = max_length // 3 if self.doc_stride is None else self.doc_stride
        longest_question = max(1, min(_LONGEST_QUESTION, math.floor(_QUESTION_SHARE * max_length)))
        room = max_length - longest_question - tokenizer.num_special_tokens_to_add(pair=True)
        if room <= stride and self.doc_stride is None:
            raise UsageError(f"--max-length: {max_length} tokens leave no room for a question and its context")
        if not 0 <= stride < room:
            raise UsageError(
                f"--doc-stride: windows of --max-length {max_length} tokens have {room} for the context when the "
                f"question takes {longest_question}; expected less than that, found {stride}"
            )

        def encode(batch: dict[str, list], numbers: list[int]) -> dict[str, list]:
            return _windows(tokenizer, batch, numbers, max_length, stride, longest_question)

        columns = {
            "question": [question.text for question in examples.items],
            "context": [question.context for question in examples.items],
            "answers": [[(*_bounds(a),) for a in q.answers if a.is_in(q.context)] for q in examples.items],
        }
        key = (tokenizer_key(tokenizer), max_length, stride, longest_question)
        dataset = map_cached(Dataset.from_dict(columns), encode, *key)
        names = [name for name in tokenizer.model_input_names if name in dataset.column_names]
        begins, ends = Ragged.column(dataset, "token_begins"), Ragged.column(dataset, "token_ends")
        return EncodedWindows.from_encoding(
            tokenizer,
            {name: Ragged.column(dataset, name) for name in names},
            {name: torch.from_numpy(flat(dataset, name)) for name in ("start_positions", "end_positions")},
            questions=examples,
            question_of=flat(dataset, "question_of"),
            offsets=[torch.stack(pair, dim=1).numpy() for pair in zip(begins, ends, strict=True)],
        )

    def outputs(self, model: Any, batch: Mapping[str, Any], lengths: Sequence[int]) -> list[torch.Tensor]:
        """See `Task.outputs`: scores of each token as a start and as an end, `(tokens, 2)`."""
        output = model(**batch)
        scores = torch.stack([output.start_logits, output.end_logits], dim=-1).float()
        if len(scores) == len(lengths):  # padded; a packed batch of one sequence is the same
            return [row[:length] for row, length in zip(scores, lengths, strict=True)]
        return list(scores[0, : sum(lengths)].split(list(lengths)))

    def score(self, outputs: Sequence[np.ndarray], encoded: EncodedWindows) -> Judgement:
        """See `Task.score`."""
        files = self.said(outputs, encoded)
        return Judgement(self.judge(files["predictions.json"], encoded.questions), files)

    def said(self, outputs: Sequence[np.ndarray], encoded: EncodedWindows) -> dict[str, Any]:
        """What a model says of each question, by file as `Judgement.files`; arguments and errors as of `score`.

        The questions need no answers.
        """
        self.check_finite(outputs)
        windows: list[list[int]] = [[] for _ in encoded.questions.items]
        for window, question in enumerate(encoded.question_of):
            windows[question].append(window)
        predictions, nbest, null_odds = {}, {}, {}
        for question, own in zip(encoded.questions.items, windows, strict=True):
            spans = merge(
                (
                    span
                    for window in own
                    for span in best_spans(
                        outputs[window], encoded.offsets[window], self.best_size, self.max_answer_length
                    )
                ),
                self.best_size,
            )
            candidates = [(question.context[span.begin : span.end], span) for span in spans]
            if self.unanswerable:
                null = min((Span(0, 0, *map(float, outputs[w][_NOWHERE])) for w in own), key=lambda span: span.score)
                best = candidates[0][1].score if candidates else -math.inf
                null_odds[question.id] = null.score - best if candidates else math.inf
                candidates = sorted([*candidates, ("", null)], key=lambda pair: -pair[1].score)
            nbest[question.id] = _with_probabilities(candidates or [("", Span(0, 0, 0.0, 0.0))])
            answers = [entry["text"] for entry in nbest[question.id]]
            if self.unanswerable:
                above = null_odds[question.id] > self.null_threshold
                answers = [""] if above else [text for text in answers if text]
            predictions[question.id] = answers[0]
        files: dict[str, Any] = {"predictions.json": predictions, "nbest_predictions.json": nbest}
        if self.unanswerable:
            # JSON has no infinity; no score of a model is near this one.
            files["null_odds.json"] = {key: min(value, 1e30) for key, value in null_odds.items()}
        return files

    def loss(self, outputs: Sequence[np.ndarray], encoded: EncodedWindows) -> float:
        """See `Task.loss`: cross-entropy of start and end over each window's own tokens, the mean over windows."""
        targets = torch.stack([encoded.targets["start_positions"], encoded.targets["end_positions"]], dim=1).numpy()
        losses = [
            _log_sum_exp(scores) - np.take_along_axis(scores, positions[None], axis=0)[0]
            for scores, positions in zip((each.astype(np.float64) for each in outputs), targets, strict=True)
        ]
        return float(np.mean(losses))

    def answers(self, outputs: Sequence[np.ndarray], encoded: EncodedWindows) -> list[dict[str, Any]]:
        """See `Task.answers`: `prediction_text` and the question's `id`."""
        predictions = self.said(outputs, encoded)["predictions.json"]
        return [
            {"prediction_text": predictions[question.id], "id": question.id} for question in encoded.questions.items
        ]

    def judge(self, predictions: Mapping[str, str], questions: Questions) -> dict[str, float]:
        """Exact match and F1 of predicted answers by the questions' ids, the means over all questions, from 0 to 1.

        With `unanswerable` also those of the questions that have an answer (`HasAns_`) and of the others (`NoAns_`).
        """
        scored = []
        for question in questions.items:
            answers = [answer.text for answer in question.answers]
            if self.unanswerable:
                answers = [text for text in answers if exact_match(text, [""]) == 0] or [""]
            prediction = predictions[question.id]
            scored.append(
                (
                    bool(question.answers),
                    exact_match(prediction, answers),
                    f1(prediction, answers, empty_matches_empty=self.unanswerable),
                )
            )
        table = np.array(scored, dtype=np.float64)
        metrics = dict(zip(("exact_match", "f1"), table[:, 1:].mean(0).tolist(), strict=True))
        if self.unanswerable:
            for prefix, rows in (("HasAns", table[table[:, 0] == 1]), ("NoAns", table[table[:, 0] == 0])):
                if len(rows):
                    metrics[f"{prefix}_exact"], metrics[f"{prefix}_f1"] = rows[:, 1:].mean(0).tolist()
        return metrics


def _log_sum_exp(scores: np.ndarray) -> np.ndarray:
    """`log(sum(exp(scores)))` of each column."""
    largest = scores.max(axis=0)
    return largest + np.log(np.exp(scores - largest).sum(axis=0))


def _bounds(answer: Answer) -> tuple[int, int]:
    """First character of an answer and the one behind its last, the white space around it left out."""
    text = answer.text.strip()
    begin = answer.start + len(answer.text) - len(answer.text.lstrip())
    return begin, begin + len(text)


def _windows(
    tokenizer: Any, batch: dict[str, list], numbers: list[int], max_length: int, stride: int, longest_question: int
) -> dict[str, list]:
    """The windows of some questions; the columns that `encode` reads."""
    questions = _cut(tokenizer, batch["question"], longest_question)
    encoding = tokenizer(
        questions,
        batch["context"],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    owners = encoding.pop("overflow_to_sample_mapping")
    made: dict[str, list] = {name: encoding[name] for name in ("input_ids", "token_type_ids") if name in encoding}
    columns = ("question_of", "token_begins", "token_ends", "start_positions", "end_positions")
    made |= {name: [] for name in columns}
    for window, owner in enumerate(owners):
        in_context = np.array([number == 1 for number in encoding.sequence_ids(window)], dtype=bool)
        offsets = np.where(in_context[:, None], np.array(encoding["offset_mapping"][window]).reshape(-1, 2), -1)
        is_first = window == 0 or owners[window - 1] != owner
        is_last = window + 1 == len(owners) or owners[window + 1] != owner
        start, end = _answer(offsets, batch["answers"][owner], is_first, is_last)
        for name, value in zip(columns, (numbers[owner], *offsets.T.tolist(), start, end), strict=True):
            made[name].append(value)
    return made


def _cut(tokenizer: Any, questions: list[str], longest: int) -> list[str]:
    """Questions, of which those of more than so many tokens are cut."""
    encoding = tokenizer(
        questions, add_special_tokens=False, truncation=True, max_length=longest, return_offsets_mapping=True
    )
    return [
        question[: encoding["offset_mapping"][row][-1][1]] if encoding.encodings[row].overflowing else question
        for row, question in enumerate(questions)
    ]


def _answer(offsets: np.ndarray, answers: list, is_first: bool, is_last: bool) -> tuple[int, int]:
    """First and last token of the first answer that a window holds wholly; [CLS] where it holds none.

    Args:
        offsets: the characters of each token `(tokens, 2)`; -1 where it is none of the context's.
        answers: begin and end of each.
        is_first, is_last: whether the context has nothing before or behind the window.
    """
    (inside,) = np.nonzero(offsets[:, 0] >= 0)
    if not len(inside):
        return _NOWHERE, _NOWHERE
    first, last = offsets[inside[0], 0], offsets[inside[-1], 1]
    for begin, end in answers:
        (tokens,) = np.nonzero((offsets[:, 1] > begin) & (offsets[:, 0] < end) & (offsets[:, 0] >= 0))
        if len(tokens) and (is_first or begin >= first) and (is_last or end <= last):
            return int(tokens[0]), int(tokens[-1])
    return _NOWHERE, _NOWHERE


def _with_probabilities(candidates: list[tuple[str, Span]]) -> list[dict[str, Any]]:
    """Answers with their logits and their shares of the softmax over them."""
    scores = np.array([span.score for _, span in candidates])
    weights = np.exp(scores - scores.max())
    return [
        {"text": text, "probability": float(share), "start_logit": span.start_logit, "end_logit": span.end_logit}
        for (text, span), share in zip(candidates, weights / weights.sum(), strict=True)
    ]
