"""Every option of every command is given a value that is not its default, in a run that shows it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets
import pytest

from earlybert import FinetuneArguments, PretrainArguments
from earlybert.arguments import RunArguments
from earlybert.cli import main
from earlybert.commands import COMMANDS
from earlybert.parsing import TrainingParser
from earlybert.programs import budget
from earlybert_kernels import Ticket
from tests.helpers.squad import document, qa, written

#: The options of a run, some of whose values are names that the fixture `places` has.
Options = dict[str, Any]

#: Runs of finetune, by what they show. Together they give every option.
FINETUNE: dict[str, Options] = {
    "a dense stock model, evaluated while it trains": {
        "model": "@bert", "task": "sst2", "data_dir": "@sst2", "output_dir": "@out", "do_predict": True,
        "method": "dense", "kernels": "off", "padding": "max_length", "cuda_graphs": "off", "seed": 7, "device": "cpu",
        "dtype": "bfloat16", "max_train_examples": 24, "max_eval_examples": 8, "max_length": 12, "batch_size": 4,
        "eval_batch_size": 16, "gradient_accumulation_steps": 2, "num_train_epochs": 2.0, "learning_rate": 1e-3,
        "warmup_ratio": 0.5, "weight_decay": 0.1, "eval_strategy": "steps", "eval_steps": 2,
        "load_best_model_at_end": True, "metric_for_best_model": "accuracy", "early_stopping_patience": 9,
        "checkpoint_steps": 1, "resume": True, "optim": "lamb", "lr_scheduler_type": "cosine", "max_grad_norm": 0.5,
        "logging_steps": 2, "report_to": ["tensorboard"],
    },
    "a search on a table of pairs": {
        "model": "@bert", "train_file": "@table", "validation_file": "@table", "test_file": "@table",
        "output_dir": "@out", "text_column": "left", "text_pair_column": "right", "label_column": "verdict",
        "metrics": ["f1", "accuracy"], "device": "cpu", "method": "random", "batch_size": 8, "max_length": 16,
        "max_steps": 2, "search_epochs": 0.5, "search_learning_rate": 1e-3, "gate_learning_rate": 1e-2,
        "gate_l1": 0.01, "gate_penalty": "proximal", "rewind_steps": 1, "head_ratio": 0.5, "neuron_ratio": 0.25,
        "early_bird_interval": 1, "early_bird_threshold": 0.9, "early_bird_patience": 1, "min_search_share": 0.1,
        "overwrite_output_dir": True, "multiple_of": 2, "ticket_epochs": 1.0,
    },
    "a given ticket on a dataset of the hub": {
        "model": "@bert", "dataset_name": "some/texts", "dataset_config_name": "en", "output_dir": "@out",
        "ticket": "@ticket", "device": "cpu", "batch_size": 8, "max_length": 16, "max_steps": 1, "search_steps": 2,
    },
    "a ticket of another run's search": {
        "model": "@bert", "task": "sst2", "data_dir": "@sst2", "output_dir": "@out", "search_from": "@search",
        "head_scope": "global", "neuron_scope": "layer", "score": "magnitude", "ticket_weights": "folded",
        "distillation": 0.25, "distillation_temperature": 1.0, "distillation_hidden_states": True,
        "discard_model": True, "device": "cpu", "batch_size": 8, "max_length": 16, "max_steps": 1,
    },
    "a target of seconds": {
        "model": "@bert", "task": "sst2", "data_dir": "@sst2", "output_dir": "@out", "search_from": "@search",
        "target_speedup": 1.05, "device": "cpu", "batch_size": 8, "max_length": 16, "max_steps": 1,
    },
    "a target of parameters": {
        "model": "@bert", "task": "sst2", "data_dir": "@sst2", "output_dir": "@out", "search_from": "@search",
        "target_parameters": 0.9, "device": "cpu", "batch_size": 8, "max_length": 16, "max_steps": 1,
    },
    "several labels of a text, in columns of their own": {
        "model": "@bert", "task": "multilabel", "train_file": "@labels", "label_columns": ["good", "bad"],
        "output_dir": "@out", "method": "dense", "device": "cpu", "batch_size": 8, "max_length": 16, "max_steps": 3,
        "warmup_steps": 2,
    },
    "questions, some of them without an answer": {
        "model": "@bert", "task": "squad_v2", "data_dir": "@squad", "output_dir": "@out", "method": "dense",
        "device": "cpu", "batch_size": 2, "max_length": 16, "max_steps": 1, "doc_stride": 2,
        "null_score_diff_threshold": 1e9,
    },
}  # fmt: skip

#: Runs of pretrain. Together with those of finetune they give every option.
PRETRAIN: dict[str, Options] = {
    "a new model on documents between blank lines": {
        "config_name": "@bert", "tokenizer": "@bert", "train_file": "@texts", "validation_file": "@texts",
        "documents": "blank-line", "output_dir": "@out", "method": "dense", "device": "cpu", "batch_size": 4,
        "eval_batch_size": 16, "max_length": 8, "long_length": 24, "long_share": 0.5, "mlm_probability": 0.3,
        "whole_words": True, "optim": "adamw", "max_steps": 2,
    },
    "a model that goes on with a stream of the hub's": {
        "model": "@bert", "dataset_name": "some/texts", "dataset_config_name": "en", "text_column": "body",
        "streaming": True, "max_train_examples": 40, "max_eval_examples": 9, "output_dir": "@out", "method": "dense",
        "device": "cpu", "batch_size": 4, "max_length": 8, "long_share": 0.0, "max_steps": 1, "eval_strategy": "epoch",
    },
}  # fmt: skip

#: Of the other commands: where each option is run with a value that is not its default.
ELSEWHERE = {
    "compare": dict.fromkeys(("methods", "kernels", "seeds", "pretrain"), "test_options.test_options_of_compare"),
    "study": {"parallel": "test_study.test_runs_in_several_processes"},
    "demo": dict.fromkeys(("output_dir", "seed", "overwrite_output_dir"), "test_options.test_options_of_demo"),
    "draw": dict.fromkeys(
        ("head_ratio", "neuron_ratio", "head_scope", "neuron_scope", "score", "multiple_of", "overwrite"),
        "test_options.test_options_of_draw",
    ),
    "predict": dict.fromkeys(("device", "overwrite"), "test_options.test_options_of_predict_and_evaluate"),
    "evaluate": {"device": "test_options.test_options_of_predict_and_evaluate"},
    "export": {"format": "test_export.test_a_runs_model_and_its_tokenizer"},
    "push": {"private": "test_push.test_pushing_again_replaces_and_private_is_private"},
    "verify": {},
    "plot": {},
    "report": {},
    "env": {},
}


@pytest.fixture(scope="module")
def places(tiny_bert: str, toy_sst2: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a run is given, by the names that the tables above call it."""
    folder = tmp_path_factory.mktemp("options")
    sst2 = folder / "sst2"
    sst2.mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (sst2 / name).write_bytes((Path(toy_sst2) / name).read_bytes())
    (sst2 / "test.tsv").write_text("index\tsentence\n0\ta good film\n1\ta bad film\n")
    rows = [line.split("\t") for line in (sst2 / "train.tsv").read_text().splitlines()[1:]]
    table = "".join(f"{text},the film,{'ny'[int(label)]}\n" for text, label in rows)
    (folder / "table.csv").write_text("left,right,verdict\n" + table)
    labels = "".join(f"{text},{label},{1 - int(label)}\n" for text, label in rows)
    (folder / "labels.csv").write_text("text,good,bad\n" + labels)
    kept = [[0, 1]] * 3, [list(range(20))] * 3
    Ticket(*kept, heads_of=[4] * 3, neurons_of=[48] * 3).save(folder / "ticket.json")
    squad = folder / "squad"
    squad.mkdir()
    asked = (qa("a", "the film", [("good", 4)]), qa("b", "a plot", [], is_impossible=True))
    content = document(*asked, context="the good film and " + "the story is very " * 4, version="v2.0")
    for split in ("train", "dev"):
        written(squad, content, f"{split}-v2.0.json")
    (folder / "texts.txt").write_text("".join(f"{text}\n{text}\n\n" for text, _ in rows))
    search = ["finetune", "--model", tiny_bert, "--task", "sst2", "--data-dir", str(sst2), "--method", "search"]
    search += ["--search-steps", "2", "--device", "cpu", "--max-length", "16", "--output-dir", str(folder / "search")]
    assert main(search) == 0
    return {
        "@search": str(folder / "search"),
        "@bert": tiny_bert, "@sst2": str(sst2), "@table": str(folder / "table.csv"), "@squad": str(squad),
        "@ticket": str(folder / "ticket.json"), "@texts": str(folder / "texts.txt"),
        "@labels": str(folder / "labels.csv"),
    }  # fmt: skip


@pytest.fixture(autouse=True)
def _steps_cost_what_they_add(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of toys take as long with half of their units."""
    monkeypatch.setattr(
        budget, "_step_seconds", lambda model, *_: [float(sum(p.numel() for p in model.parameters()))] * 4
    )


@pytest.fixture
def asked_of_hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands for the hub, which has one dataset; what it is asked for."""
    asked: list[Any] = []

    def load_dataset(*names: str, **options: Any) -> Any:
        asked.append((*names, options.get("streaming", False)))
        texts = ["a good film", "the bad plot"] * 25
        split = datasets.Dataset.from_dict({"text": texts, "body": texts, "label": ["x", "y"] * 25})
        if options.get("streaming"):
            return {"train": split.to_iterable_dataset()}
        return datasets.DatasetDict(train=split)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def run(command: str, options: Options, places: dict[str, str], out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs a command by its flags; what its folder records of the options, and its metrics."""
    argv = [command]
    known = {**places, "@out": str(out)}
    expected = {name: known.get(value, value) if isinstance(value, str) else value for name, value in options.items()}
    for name, value in expected.items():
        argv.append("--" + name.replace("_", "-"))
        argv += [] if value is True else map(str, value) if isinstance(value, list) else [str(value)]
    assert main(argv) == 0
    recorded, metrics = (json.loads((out / name).read_text()) for name in ("arguments.json", "metrics.json"))
    assert {name: recorded[name] for name in expected} == expected
    assert metrics["arguments"] == recorded
    return recorded, metrics


@pytest.mark.parametrize("what", FINETUNE)
def test_options_of_finetune(what: str, places: dict[str, str], tmp_path: Path, asked_of_hub: list[Any]) -> None:
    out = tmp_path / "run"
    _, metrics = run("finetune", FINETUNE[what], places, out)
    steps, ticket = metrics["steps"], metrics["ticket"]
    if what.startswith("a dense stock"):
        assert (metrics["method"], metrics["kernels"], metrics["seed"], metrics["backend"]) == ("dense", "off", 7, {})
        assert metrics["examples"] == {"train": 24, "eval": {"dev": 8}}
        assert steps == {"search": 0, "train": 6}, "24 examples twice, in batches of 4 times 2"
        assert [record["step"] for record in metrics["curve"]] == [2, 4, 6]
        assert set(metrics["best"]) == {"step", "accuracy"}
        assert (out / "test_predictions.tsv").read_text().count("\n") == 3
        assert [record["step"] for record in metrics["train_log"]] == [2, 4, 6]
        assert list((out / "runs").rglob("events.out.tfevents.*"))
    elif what.startswith("a search"):
        assert (metrics["method"], metrics["main_metric"], list(metrics["eval"])) == (
            "random",
            "f1",
            ["f1", "accuracy", "eval_loss"],
        )
        assert ticket["heads"] == [2] * 3 and sum(ticket["neurons"]) == 3 * 36
        assert 1 <= steps["search"] <= 6 and steps["train"] == 2
        assert (out / "test_predictions.jsonl").read_text().count("\n") == 90
    elif what.startswith("a ticket of another"):
        assert sum(ticket["heads"]) == 8 and ticket["neurons"] == [29] * 3
        assert steps == {"search": 2, "train": 1} and not (out / "model").exists()
    elif what.startswith("a target"):
        assert metrics["parameters"]["trained"] < 0.96 * metrics["parameters"]["dense"]
        assert sum(ticket["neurons"]) % 16 == 0 and steps == {"search": 2, "train": 1}
    elif what.startswith("several labels"):
        assert list(metrics["eval"]) == ["f1_micro", "f1_macro", "exact_match", "eval_loss"] and steps["train"] == 3
    elif what.startswith("a given ticket"):
        assert asked_of_hub == [("some/texts", "en", False)]
        assert ticket["heads"] == [2] * 3 and ticket["neurons"] == [20] * 3 and steps["search"] == 0
    else:
        answers = json.loads((out / "predictions.json").read_text())
        assert set(answers) == {"a", "b"}
        assert all(answers.values()), "no score is above a threshold as high as that"


@pytest.mark.parametrize("what", PRETRAIN)
def test_options_of_pretrain(what: str, places: dict[str, str], tmp_path: Path, asked_of_hub: list[Any]) -> None:
    _, metrics = run("pretrain", PRETRAIN[what], places, tmp_path / "run")
    if what.startswith("a new model"):
        assert metrics["model"] == places["@bert"]
        assert metrics["examples"] == {"train": 90, "eval": {"dev": 90}}, "documents of two lines"
        assert metrics["steps"]["train"] == 2
    else:
        assert asked_of_hub == [("some/texts", "en", True)]
        assert metrics["examples"]["train"] + metrics["examples"]["eval"]["dev"] <= 40


def test_options_of_compare(places: dict[str, str], tmp_path: Path) -> None:
    argv = ["compare", "--pretrain", "--config-name", places["@bert"], "--train-file", places["@texts"]]
    argv += ["--max-length", "8", "--long-share", "0", "--max-steps", "1", "--batch-size", "4", "--device", "cpu"]
    argv += ["--methods", "dense", "--kernels", "off", "--seeds", "5", "--output-dir", str(tmp_path)]
    assert main(argv) == 0
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    [row] = comparison["rows"]
    assert (comparison["task"], row["method"], row["kernels"], row["seeds"]) == ("mlm", "dense", "off", [5])


def test_options_of_draw(places: dict[str, str], tmp_path: Path) -> None:
    run("finetune", FINETUNE["a search on a table of pairs"], places, tmp_path / "run")
    output = tmp_path / "ticket.json"
    output.write_text("{}")
    argv = ["draw", str(tmp_path / "run"), str(output), "--overwrite", "--head-ratio", "0.25", "--neuron-ratio", "0.5"]
    assert (
        main([*argv, "--head-scope", "global", "--neuron-scope", "layer", "--multiple-of", "8", "--score", "magnitude"])
        == 0
    )
    ticket = Ticket.load(output)
    assert sum(map(len, ticket.heads)) == 9
    assert [len(units) for units in ticket.neurons] == [24] * 3


def test_options_of_predict_and_evaluate(
    places: dict[str, str], tmp_path: Path, asked_of_hub: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run("finetune", FINETUNE["a given ticket on a dataset of the hub"], places, tmp_path / "run")
    file, output = tmp_path / "t.csv", tmp_path / "p.jsonl"
    file.write_text("text,label\na good film,x\nthe bad plot,y\n")
    output.write_text("old\n")
    predict = ["predict", str(tmp_path / "run"), str(file), str(output)]
    assert main([*predict, "--device", "cpu", "--overwrite"]) == 0
    assert output.read_text().count('"label"') == 2
    assert main(["evaluate", str(tmp_path / "run"), str(file), "--device", "cpu"]) == 0
    capsys.readouterr()
    for argv in ([*predict, "--overwrite"], ["evaluate", str(tmp_path / "run"), str(file)]):
        assert main([*argv, "--device", "toaster"]) == 2
        assert "--device toaster" in capsys.readouterr().err


def test_options_of_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from earlybert.programs import demo

    seen: list[Any] = []

    def compare(template: FinetuneArguments, variants: Any, seeds: Any) -> dict[str, str]:
        seen.append((template.output_dir, list(seeds), template.overwrite_output_dir))
        return {"markdown": ""}

    monkeypatch.setattr(demo, "compare", compare)
    monkeypatch.setattr(demo, "model_folder", lambda: Path("m"))
    assert main(["demo", "--output-dir", str(tmp_path), "--seed", "5", "--overwrite-output-dir"]) == 0
    assert seen == [(str(tmp_path), [5], True)]


def options_of(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The defaults of what `--help` shows, by name, but for `--help`, and for files of settings (`test_settings`)."""
    shown = [each for each in parser._actions if each.option_strings and each.help != argparse.SUPPRESS]
    # A switch has no default of its own (`test_settings` too).
    return {
        e.dest: e.default
        for e in shown
        if e.dest not in ("help", "config", "recipe") and e.default != argparse.SUPPRESS
    }


def test_every_option_of_training_is_given() -> None:
    given: dict[type, set[str]] = {}
    for cls, runs in ((FinetuneArguments, FINETUNE), (PretrainArguments, PRETRAIN)):
        defaults = options_of(TrainingParser(cls))
        given[cls] = {n for options in runs.values() for n, value in options.items() if value != defaults[n]}
    assert set(options_of(TrainingParser(FinetuneArguments))) == given[FinetuneArguments]
    # What all runs have is the same code.
    shared = {field.name for field in fields(RunArguments)} & given[FinetuneArguments]
    assert set(options_of(TrainingParser(PretrainArguments))) == shared | given[PretrainArguments]


def names_of_tests(folder: Path) -> Iterable[str]:
    for path in folder.glob("test_*.py"):
        for line in path.read_text().splitlines():
            if line.startswith("def test_"):
                yield f"{path.stem}.{line.removeprefix('def ').split('(')[0]}"


def test_every_option_of_the_other_commands_is_given() -> None:
    training = set(options_of(TrainingParser(FinetuneArguments)))
    for command in COMMANDS.keys() - {"finetune", "pretrain"}:
        parser: Callable[..., argparse.ArgumentParser] = COMMANDS[command].make_parser
        own = set(options_of(parser(f"earlybert {command}", [])))
        if command == "compare":
            own = (own - training) | {"kernels"}
        assert own == set(ELSEWHERE[command]), command
    named = {test for options in ELSEWHERE.values() for test in options.values()}
    assert named <= set(names_of_tests(Path(__file__).parent))
