"""Fine-tuning on tables with a tag for each word."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForTokenClassification, AutoTokenizer

import earlybert_kernels as ek
from earlybert import FinetuneArguments, evaluate, finetune, predict
from earlybert.cli import main
from earlybert.errors import Interrupted, UsageError
from earlybert.tasks import TASKS, Source
from earlybert.tasks.columns import Table, WordTags
from earlybert.tasks.tables import read_table, read_tables
from earlybert.training.batches import BatchMaker
from earlybert.training.loop import TrainingLoop
from tests.helpers.model_folder import edit_config
from tests.helpers.tables import write_table
from tests.helpers.toy import FILLERS, WORDS

Make = Callable[..., FinetuneArguments]
CPU = torch.device("cpu")
TASK = TASKS["token-classification"]
TAGS = ("B-BAD", "B-GOOD", "I-BAD", "I-GOOD", "O")
SENTENCES = [("a", "good", "film"), ("bad", "dull", "plot", "and", "story")]
THEIRS = [("O", "B-GOOD", "O"), ("B-BAD", "I-BAD", "O", "O", "O")]


def toy_columns(rows: int, seed: int) -> dict[str, list[Any]]:
    """Sentences in which every good word, and every bad one, is an entity, or the next word of one."""
    generator = random.Random(seed)
    columns: dict[str, list[Any]] = {"tokens": [], "ner_tags": []}
    for _ in range(rows):
        words = generator.choices((*FILLERS, *WORDS[0], *WORDS[1]), k=generator.randint(2, 9))
        kinds = ["BAD" if word in WORDS[0] else "GOOD" if word in WORDS[1] else None for word in words]
        columns["tokens"].append(words)
        columns["ner_tags"].append(
            [
                "O" if kind is None else f"{'I' if i and kinds[i - 1] == kind else 'B'}-{kind}"
                for i, kind in enumerate(kinds)
            ]
        )
    return columns


@pytest.fixture
def toy(tmp_path: Path) -> dict[str, Any]:
    """The arguments that name the toy table's files."""
    for name, rows in (("train", 120), ("dev", 30)):
        write_table(tmp_path / f"{name}.jsonl", toy_columns(rows, seed=rows))
    files = {"train_file": str(tmp_path / "train.jsonl"), "validation_file": str(tmp_path / "dev.jsonl")}
    return {"task": TASK.name, "data_dir": None, **files}


def read(path: Path, **columns: Any) -> Table:
    return read_tables(Source(train_file=path, validation_file=path), WordTags(**columns))[0]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_words_and_tags_are_lists(tmp_path: Path, suffix: str) -> None:
    columns = {"tokens": list(map(list, SENTENCES)), "ner_tags": list(map(list, THEIRS))}
    assert read(write_table(tmp_path / f"t{suffix}", columns)) == Table(SENTENCES, THEIRS)
    named = {"w": columns["tokens"], "t": columns["ner_tags"]}
    assert read(write_table(tmp_path / f"n{suffix}", named), text="w", label="t") == Table(SENTENCES, THEIRS)


def test_conll_files_have_a_word_a_line(tmp_path: Path) -> None:
    path = tmp_path / "t.conll"
    # Of four fields, as CoNLL-2003 has them, the last is the tag; a no-break space is part of a word.
    path.write_bytes(
        "\ufeff-DOCSTART- -X- -X- O\n\na DT B-NP O\ngood JJ I-NP B-GOOD\nfilm NN I-NP O\r\n\n \n"
        "bad\tB-BAD\ndull\tI-BAD\nplot \t O\nand O\n10\u00a0000 O".encode()
    )
    words = [SENTENCES[0], ("bad", "dull", "plot", "and", "10\u00a0000")]
    assert read(path) == Table(words, THEIRS)
    path.write_text("a\ngood\nfilm\n\nbad\n")
    assert read_table(path).column_names == ["tokens"]
    assert WordTags().read(read_table(path), "t", labelled=False).texts == [("a", "good", "film"), ("bad",)]
    path.write_text("a O\ngood\n")
    with pytest.raises(UsageError, match=r"t\.conll, line 2: expected a word and its tag, as in the lines before"):
        read_table(path)


def test_saved_datasets_keep_the_names_of_their_tags(tmp_path: Path) -> None:
    names = ["O", "B-X", "I-X"]
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})
    split = Dataset.from_dict({"tokens": [["a", "b"], ["c"]], "ner_tags": [[1, 0], [1]]}, features=features)
    DatasetDict(train=split, validation=split).save_to_disk(str(tmp_path / "saved"))
    data = TASK.load(Source(data_dir=tmp_path / "saved"))
    assert data.train.labels == [("B-X", "O"), ("B-X",)]
    assert TASK.fitted(data).labels == tuple(names)
    unlabelled = split.map(lambda row: {"ner_tags": [-1] * len(row["tokens"])}, features=features)
    DatasetDict(train=unlabelled).save_to_disk(str(tmp_path / "unlabelled"))
    with pytest.raises(UsageError, match="split train, row 1: expected a label in column ner_tags, found none"):
        TASK.load(Source(data_dir=tmp_path / "unlabelled"))


GOOD_ROW = {"tokens": ["a", "b"], "ner_tags": ["O", "B-X"]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ner_tags": ["O"]}, "row 2: expected a tag for each word, found 2 words and 1 tags"),
        ({"tokens": [], "ner_tags": []}, "row 2: expected a list of words in column tokens, found an empty one"),
        ({"tokens": None}, "row 2: expected a list of words in column tokens, found nothing; lists are in .jsonl"),
        ({"tokens": ["a", None]}, "row 2: expected words in column tokens, found None"),
        ({"ner_tags": None}, "row 2: expected a list of tags in column ner_tags, found nothing"),
        ({"ner_tags": ["O", None]}, "row 2: expected names of tags in column ner_tags, such as B-PER and O, found"),
    ],
)  # fmt: skip
def test_rows_that_are_no_tagged_words_are_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    rows = [GOOD_ROW, {**GOOD_ROW, **changes}]
    path = write_table(tmp_path / "t.jsonl", {name: [row[name] for row in rows] for name in GOOD_ROW})
    with pytest.raises(UsageError, match=expected) as error:
        read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_tags_that_are_numbers_need_names(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.jsonl", {"tokens": [["a", "b"]], "ner_tags": [[0, 1]]})
    with pytest.raises(UsageError, match="found 0; only a saved dataset's ClassLabel says what numbers stand for"):
        read(path)
    path = write_table(tmp_path / "t.csv", {"tokens": ["a b"], "ner_tags": ["O O"]})
    with pytest.raises(UsageError, match="found 'a b'; lists are in .*, .conll files have a word a line"):
        read(path)


def test_what_does_not_fit_is_said_before_a_model_is_loaded(
    toy: dict[str, Any], arguments: Make, no_model_is_loaded: None
) -> None:
    dev = Path(toy["validation_file"])
    for tag, changes, message in (
        ("I-UGLY", {}, "the evaluation examples have labels that the training examples do not: I-UGLY"),
        ("O", {"metrics": ["f1_macro"]}, "--metrics: expected of f1, precision, recall, accuracy for token-class"),
        ("O", {"text_pair_column": "x"}, "--text-pair-column says nothing to task token-classification"),
        ("O", {"label_columns": ["x"]}, "--label-columns says nothing to task token-classification"),
        ("O", {"train_file": str(dev)}, "expected two tags at least, found only O"),
    ):
        write_table(dev, {"tokens": [["a"]] * 2, "ner_tags": [[tag]] * 2})
        with pytest.raises(UsageError, match=message):
            finetune(arguments(**{**toy, **changes}))
    write_table(dev, {"tokens": [["a", "b"]], "ner_tags": [["DET", "NOUN"]]})
    with pytest.raises(UsageError, match="tags are B-..., I-... and O; found DET, NOUN; of other tags give --met"):
        finetune(arguments(**{**toy, "train_file": str(dev)}))


def encoded(tiny_bert: str, words: list[tuple[str, ...]], tags: list[Any], max_length: int = 16) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    return replace(TASK, labels=TAGS).encode(tokenizer, Table(words, tags), max_length)


def test_the_first_token_of_each_word_is_labelled(tiny_bert: str) -> None:
    words = ("the", "good-plot", "\u200b", "is good", "bad")  # of which the third has no token of its own
    examples = encoded(tiny_bert, [words], [("O", "B-GOOD", "I-GOOD", "O", "B-BAD")])
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokens = tokenizer.convert_ids_to_tokens(examples[0]["input_ids"].tolist())
    assert tokens == ["[CLS]", "the", "good", "[UNK]", "plot", "[UNK]", "is", "good", "bad", "[SEP]"]
    assert examples[0]["labels"].tolist() == [-100, 4, 1, -100, -100, 3, 4, -100, 0, -100]
    assert examples.of_tokens == {"input_ids", "token_type_ids", "labels"}


def test_words_behind_the_cut_are_counted(tiny_bert: str, caplog: pytest.LogCaptureFixture) -> None:
    words = [("a",) * 3, ("a",) * 9, ("good-plot", "a-a", "a")]
    examples = encoded(tiny_bert, words, [("O",) * len(row) for row in words], max_length=6)
    assert [int((row["labels"] != -100).sum()) for row in (examples[i] for i in range(3))] == [3, 4, 2]
    (warning,) = caplog.messages
    assert warning.startswith("6 of 15 words, in 2 of 3 sentences, are behind --max-length 6: they are neither trained")
    outputs = [torch.eye(5)[[4] * kept].numpy() for kept in (3, 4, 2)]
    task = replace(TASK, labels=TAGS)
    assert [answer["tags"] for answer in task.answers(outputs, examples)] == [
        ["O"] * 3, ["O"] * 4 + [None] * 5, ["O", "O", None],
    ]  # fmt: skip
    assert task.score(outputs, examples).metrics["accuracy"] == 1.0
    caplog.set_level(logging.WARNING)
    caplog.clear()
    encoded(tiny_bert, SENTENCES, THEIRS)
    assert not caplog.messages


def test_the_loss_is_that_of_stock_transformers(tiny_bert: str) -> None:
    words = [*SENTENCES, ("good-plot", "is", "warm")]
    examples = encoded(tiny_bert, words, [*THEIRS, ("B-GOOD", "O", "I-GOOD")])
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_pretrained(tiny_bert, num_labels=len(TAGS)).eval()
    alone = [model(input_ids=examples[i]["input_ids"][None]).logits[0] for i in range(3)]
    firsts = [[1, 2, 3], [1, 2, 3, 4, 5], [1, 4, 5]]
    labels = torch.tensor([4, 1, 4, 0, 2, 4, 4, 4, 1, 4, 3])
    logits = torch.cat([rows[first] for rows, first in zip(alone, firsts, strict=True)])
    expected = functional.cross_entropy(logits.double(), labels)

    padded = BatchMaker(model, examples, CPU)([0, 1, 2])
    assert padded["labels"].shape == padded["input_ids"].shape == (3, 7)
    packed = BatchMaker(ek.convert(model), examples, CPU)([0, 1, 2])
    assert packed["labels"].shape == packed["input_ids"].shape == (1, 19)
    filled = BatchMaker(model, examples, CPU, fill_from=4, skip_logits=True)([0, 1, 2])
    assert filled["input_ids"].shape[1] > 19 and "skip_logits" not in filled
    lengths = examples.lengths()
    for batch in (packed, padded, filled):
        output = model(**batch)
        torch.testing.assert_close(output.loss.double(), expected, atol=1e-6, rtol=1e-5)
        for found, rows, first in zip(TASK.outputs(model, batch, lengths), alone, firsts, strict=True):
            torch.testing.assert_close(found, rows[first], atol=1e-5, rtol=1e-4)
    ek.restore(model)
    torch.testing.assert_close(model(**padded).loss.double(), expected, atol=1e-6, rtol=1e-5)


def test_metrics_by_hand(tiny_bert: str) -> None:
    examples = encoded(tiny_bert, SENTENCES, THEIRS)
    said = [["O", "B-GOOD", "O"], ["B-BAD", "O", "O", "O", "I-GOOD"]]
    outputs = [torch.eye(5)[[TAGS.index(tag) for tag in row]].numpy() for row in said]
    # Two entities are there and three are said, of which one is right; 6 of 8 words are.
    expected = {"f1": 2 / 5, "precision": 1 / 3, "recall": 1 / 2, "accuracy": 6 / 8}
    assert replace(TASK, labels=TAGS).score(outputs, examples).metrics == pytest.approx(expected)


@pytest.mark.parametrize(("method", "kernels"), [("earlybert", "auto"), ("random", "auto"), ("inverted", "off")])
def test_a_run_learns_predicts_and_keeps_the_names(
    arguments: Make, toy: dict[str, Any], tmp_path: Path, method: str, kernels: str
) -> None:
    args = arguments(**toy, method=method, kernels=kernels, max_steps=120)
    result = finetune(args)
    assert list(result["eval"]) == ["f1", "precision", "recall", "accuracy", "eval_loss"]
    assert result["main_metric"] == "f1" and result["eval"]["f1"] > 0.6, "the toy task is easy"
    assert main(["verify", args.output_dir]) == 0
    assert evaluate(args.output_dir, toy["validation_file"]) == pytest.approx(result["eval"], rel=1e-5)

    (tmp_path / "words.conll").write_text("".join("\n".join(words) + "\n\n" for words in SENTENCES))
    predict(args.output_dir, str(tmp_path / "words.conll"), str(tmp_path / "p.jsonl"))
    predict(args.output_dir, str(tmp_path / "words.conll"), str(tmp_path / "p.tsv"))
    answers = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    model = ek.to_stock(AutoModelForTokenClassification.from_pretrained(f"{args.output_dir}/model")).eval()
    assert tuple(model.config.id2label.values()) == TAGS
    tokenizer = AutoTokenizer.from_pretrained(f"{args.output_dir}/model")
    for words, answer in zip(SENTENCES, answers, strict=True):  # whose words are a token each
        with torch.no_grad():
            logits = model(**tokenizer(" ".join(words), return_tensors="pt")).logits[0, 1:-1]
        scores, classes = logits.softmax(dim=1).max(dim=1)
        assert answer["tags"] == [TAGS[i] for i in classes.tolist()]
        assert answer["scores"] == pytest.approx(scores.tolist(), abs=1e-4)
    expected = [f"{i}\t{json.dumps(answer['tags'])}" for i, answer in enumerate(answers)]
    assert (tmp_path / "p.tsv").read_text().splitlines() == ["index\tprediction", *expected]


def test_steps_weigh_words_alike_however_they_are_split(
    tiny_bert: str, arguments: Make, toy: dict[str, Any], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "without-dropout"))
    edit_config(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    losses = []
    for batch_size, steps in ((8, 1), (2, 4)):
        args = arguments(
            **toy, model=str(folder), output_dir=str(tmp_path / str(steps)), method="dense", max_steps=3,
            batch_size=batch_size, gradient_accumulation_steps=steps,
        )  # fmt: skip
        losses.append(finetune(args)["train_log"][-1]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_an_interrupted_run_goes_on_to_the_same_weights(
    arguments: Make, toy: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = (arguments(**toy, output_dir=str(tmp_path / name), checkpoint_steps=3) for name in ("whole", "own"))
    finetune(whole)
    step = TrainingLoop._train_step

    def stopping(loop: TrainingLoop, batches: list[list[int]]) -> None:
        step(loop, batches)
        if loop.settings.name == "train" and loop.step == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_train_step", stopping)
        with pytest.raises((KeyboardInterrupt, Interrupted)):
            finetune(broken)
    path = Path(toy["train_file"])
    right = path.read_text()
    path.write_text(right.replace('"O"', '"B-GOOD"', 1))  # another tag of the same words
    with pytest.raises(UsageError, match="the training examples .* are not those that it was started with"):
        finetune(replace(broken, resume=True))
    path.write_text(right)
    finetune(replace(broken, resume=True))
    left, own = (load_file(f"{args.output_dir}/model/model.safetensors") for args in (whole, broken))
    assert left.keys() == own.keys() and all(torch.equal(left[name], own[name]) for name in left)


def test_a_classifier_of_words_is_kept_and_one_of_texts_is_not(
    tiny_bert: str, arguments: Make, toy: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "earlybert")
    options = {"num_labels": len(TAGS), "id2label": dict(enumerate(reversed(TAGS)))}
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_pretrained(tiny_bert, **options)
    for name, architecture in (("words", "BertForTokenClassification"), ("texts", "BertForSequenceClassification")):
        folder = tmp_path / name
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
        edit_config(folder, architectures=[architecture])
        output = str(tmp_path / f"of-{name}")
        finetune(arguments(**toy, model=str(folder), method="dense", max_steps=1, output_dir=output))
    found = [message for message in caplog.messages if message.startswith("classifier: ")]
    assert found[0] == "classifier: the checkpoint's, its labels put in the task's order"
    assert found[1].startswith("classifier: new; the checkpoint's labels () are not the task's")
