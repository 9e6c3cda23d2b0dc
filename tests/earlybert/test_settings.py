"""Settings from files, and the names that flags may have."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from earlybert import RECIPES, FinetuneArguments, PretrainArguments
from earlybert.cli import main
from earlybert.commands import COMMANDS
from earlybert.errors import MissingFileError, UsageError
from earlybert.parsing import ALIASES, SWITCHES, TrainingParser
from earlybert.study_file import read_study

Write = Callable[[str], str]
REQUIRED = ["--model", "m", "--output-dir", "o"]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Makes a file of settings."""

    def write(text: str, name: str = "settings.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def parse(*argv: str, cls: type = FinetuneArguments) -> dict[str, Any]:
    return vars(TrainingParser(cls, prog="earlybert").parse_args(argv))


def test_a_file_gives_what_flags_do_not(write: Write) -> None:
    file = write(
        "model: m\noutput_dir: o\nlearning-rate: 2e-5\nbatch_size: 8\nmetrics: [accuracy, mcc]\nmax_steps: null\n"
        "resume: true\nwarmup_ratio: 0\ndevice: cuda:1\n"
    )
    found = parse("--batch-size", "4", "--config", file)
    expected = {
        "model": "m", "output_dir": "o", "learning_rate": 2e-5, "batch_size": 4, "metrics": ["accuracy", "mcc"],
        "max_steps": None, "resume": True, "warmup_ratio": 0, "device": "cuda:1", "seed": FinetuneArguments.seed,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


def test_values_that_yaml_1_1_takes_for_others_are_what_flags_take_them_for(write: Write) -> None:
    file = write("kernels: off\ncuda_graphs: off\neval_strategy: no\npadding: none\nlabel_column: 2020-01-01\n")
    found = parse(*REQUIRED, "--config", file)
    assert [found[n] for n in ("kernels", "cuda_graphs", "eval_strategy", "padding", "label_column")] == [
        "off", "off", "no", "none", "2020-01-01"
    ]  # fmt: skip


def test_whole_numbers_are_decimal_as_in_flags(write: Write) -> None:
    assert parse(*REQUIRED, "--config", write("seed: 010\nbatch_size: +8"))["seed"] == 10
    for value in ("1:30", "0x10", "1_000"):
        with pytest.raises(UsageError, match=f'seed: expected a whole number, found "{value}"'):
            parse(*REQUIRED, "--config", write(f"seed: {value}"))


@pytest.mark.parametrize("name", ["settings.yaml", "settings.json"])
def test_a_byte_order_mark_is_no_setting(write: Write, name: str) -> None:
    assert parse(*REQUIRED, "--config", write('\ufeff{"seed": 3}', name))["seed"] == 3


def test_a_folder_of_settings_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "settings.yaml").mkdir()
    assert main(["finetune", *REQUIRED, "--config", str(tmp_path / "settings.yaml")]) == 2
    assert capsys.readouterr().err.endswith("settings.yaml: Is a directory\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sped: 3", "sped: no such setting; the nearest name is seed"),
        ("config: x.yaml", "config: no such setting"),
        ("batch_size: 1\nbatch_size: 2", "batch_size: given twice"),
        ("batch_size: 1\nbatch-size: 2", "batch-size: given twice, as batch_size too"),
        ("save_steps: 1\ncheckpoint_steps: 2", "checkpoint_steps: given twice, as save_steps too"),
        ("bf16: true\ndtype: float32", "dtype: given twice, as bf16 too"),
        ("bf16: 1", "bf16: expected true or false, found 1"),
        ("batch_size: 2.5", "batch_size: expected a whole number, found 2.5"),
        ("batch_size: true", "batch_size: expected a whole number, found true"),
        ("batch_size:", "batch_size: expected a whole number, found null"),
        ("learning_rate: fast", 'learning_rate: expected a number, found "fast"'),
        ("learning_rate: [1]", r"learning_rate: expected a number, found \[1\]"),
        ("resume: yes", 'resume: expected true or false, found "yes"'),
        ("model: 3", "model: expected a text, found 3"),
        ("metrics: f1", 'metrics: expected a list, found "f1"'),
        ("metrics: [1]", r"metrics: expected a text, found \[1\]"),
        ("padding: false", "padding: expected one of none, longest, max_length, found false"),
        ("a: [", "expected YAML, found in line 1: "),
        ("- model", "expected names and values, found list"),
        ("", "expected names and values, found NoneType"),
    ],
)
def test_a_file_that_is_not_as_expected(write: Write, text: str, message: str) -> None:
    file = write(text)
    with pytest.raises(UsageError, match=f"^{file}: {message}") as error:
        parse(*REQUIRED, "--config", file)
    assert "\n" not in str(error.value)


def test_json_is_read_as_json(write: Write) -> None:
    with pytest.raises(UsageError, match="seed: given twice"):
        parse(*REQUIRED, "--config", write('{"seed": 1, "seed": 2}', "s.json"))
    with pytest.raises(UsageError, match="s.json: expected JSON, found"):
        parse(*REQUIRED, "--config", write("seed: 1", "s.json"))
    assert parse(*REQUIRED, "--config", write('{"device": "\\ud83d\\ude00"}', "s.json"))["device"] == "\U0001f600"


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MissingFileError, match="absent.yaml: no such file"):
        parse(*REQUIRED, "--config", "absent.yaml")
    with pytest.raises(UsageError, match="--config s.txt: expected a file named .yaml, .yml or .json"):
        parse(*REQUIRED, "--config", "s.txt")
    assert main(["finetune", *REQUIRED, "--config", str(tmp_path / "absent.yaml")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("earlybert: error: --config ") and error.count("\n") == 1


def test_what_is_required_may_come_from_a_file(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--config", write("seed: 1"))
    assert "the following arguments are required: --model, --output-dir" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse("--output-dir", "o", "--config", write("model: null"))
    assert "the following arguments are required: --model\n" in capsys.readouterr().err


def test_the_config_of_a_new_model_may_still_be_called_config(write: Write) -> None:
    assert parse("--output-dir", "o", "--config", "bert", cls=PretrainArguments)["config_name"] == "bert"
    file = write("config_name: bert\noutput_dir: o\n")
    assert parse("--config", file, cls=PretrainArguments)["config_name"] == "bert"


def test_a_comparison_takes_its_own_settings_too(write: Write) -> None:
    file = write("model: m\noutput_dir: o\nkernels: [off]\nmethods: [dense]\nseeds: [1, 2]\n")
    argv = ["--config", file, "--seeds", "3"]
    found = COMMANDS["compare"].make_parser("earlybert compare", argv).parse_args(argv)
    assert (found.kernels, found.methods, found.seeds, found.model) == (["off"], ["dense"], [3], "m")
    for name in ("seed", "method", "pretrain"):
        argv = ["--config", write(f"{name}: 1")]
        with pytest.raises(UsageError, match=f"{name}: no such setting"):
            COMMANDS["compare"].make_parser("earlybert compare", argv).parse_args(argv)


@pytest.mark.parametrize("name", ALIASES)
def test_names_of_transformers_mean_the_same(name: str, write: Write) -> None:
    cls = PretrainArguments if name == "tokenizer" else FinetuneArguments
    required = ["--output-dir", "o", *(() if name == "model" else ("--model", "m"))]
    value = {"resume": "True", "tokenizer": "t", "model": "t", "task": "t", "dataset_config_name": "t"}.get(name, "7")
    expected = parse(*required, "--" + name, value, cls=cls)
    alias = ALIASES[name]
    assert expected[name] != parse("--model", "m", "--output-dir", "o", cls=cls)[name]
    assert parse(*required, alias, value, cls=cls) == expected
    assert parse(*required, "--" + alias[2:].replace("-", "_"), value, cls=cls) == expected
    file = write(json.dumps({alias[2:].replace("-", "_"): expected[name]}), "s.json")
    assert parse(*required, "--config", file, cls=cls)[name] == expected[name]


def test_switches_of_transformers_set_the_dtype(write: Write) -> None:
    for switch, value in SWITCHES["dtype"].items():
        assert parse(*REQUIRED, switch)["dtype"] == value
        assert parse(*REQUIRED, "--config", write(f"{switch[2:]}: true"))["dtype"] == value
        assert parse(*REQUIRED, "--config", write(f"{switch[2:]}: false"))["dtype"] == "float32"


def test_switches_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(*REQUIRED, "--bf16", "--fp16")
    assert "--fp16: not allowed with argument --bf16" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(*REQUIRED, "--bf16", "--dtype", "float16")
    assert "--dtype: not allowed with argument --bf16" in capsys.readouterr().err


def test_a_recipe_is_several_defaults_at_once(write: Write) -> None:
    best, paper = RECIPES["best"], RECIPES["paper"]
    plain = parse(*REQUIRED)
    assert FinetuneArguments(model="m", output_dir="o", **paper) == FinetuneArguments(model="m", output_dir="o")
    for recipe in (best, paper):
        FinetuneArguments(model="m", output_dir="o", **recipe).check()
    assert parse(*REQUIRED, "--recipe", "best") == {**plain, **best, "recipe": "best"}
    assert parse(*REQUIRED, "--recipe", "paper") == {**plain, "recipe": "paper"}
    own = ["--learning-rate", "3e-5", "--recipe", "best"]
    assert parse(*REQUIRED, *own) == {**plain, **best, "learning_rate": 3e-5, "recipe": "best"}


def test_a_recipe_in_a_file_is_behind_what_it_says_itself_and_behind_flags(write: Write) -> None:
    file = write("learning_rate: 3e-5\nrecipe: best\n")
    found = parse(*REQUIRED, "--config", file)
    assert {name: found[name] for name in RECIPES["best"]} == {**RECIPES["best"], "learning_rate": 3e-5}
    found = parse(*REQUIRED, "--config", file, "--recipe", "paper", "--search-epochs", "0.3")
    assert {name: found[name] for name in RECIPES["best"]} == {**RECIPES["paper"], "search_epochs": 0.3}
    with pytest.raises(UsageError, match='recipe: expected one of paper, best, found "worst"'):
        parse(*REQUIRED, "--config", write("recipe: worst\n"))
    with pytest.raises(UsageError, match="recipe: no such setting"):
        parse("--output-dir", "o", "--config", write("recipe: best\n"), cls=PretrainArguments)


def test_an_arm_of_a_study_may_be_a_recipe(write: Write) -> None:
    study = read_study(
        write(
            "output_dir: o\nseeds: [1]\ncommon: {model: m, learning_rate: 3e-5}\ntasks: {sst2: {}}\n"
            "arms: {own: {}, best: {recipe: best}, both: {recipe: [paper, best]}}\n"
        )
    )
    rates = {name: args.learning_rate for name, args in study.arms["sst2"].items()}
    best, paper = (RECIPES[name]["learning_rate"] for name in ("best", "paper"))
    assert rates == {"own": 3e-5, "best": best, "both recipe=paper": paper, "both recipe=best": best}


def test_the_page_on_the_command_line_has_a_file_and_all_names(write: Write) -> None:
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
    example, of_a_study = re.findall(r"^```yaml\n(.*?)^```$", page, re.M | re.S)
    found = parse("--output-dir", "o", "--config", write(example))
    assert (found["learning_rate"], found["batch_size"], found["dtype"]) == (5e-5, 16, "bfloat16")
    for name in [*ALIASES.values(), *SWITCHES["dtype"]]:
        assert f"`{name}`" in page
    study = read_study(write(of_a_study))
    assert [len(arms) for arms in study.arms.values()] == [8, 8] and study.baseline == "dense"
    for args in (args for arms in study.arms.values() for args in arms.values()):
        args.check()


def test_help_shows_every_flag_once_with_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["finetune", "--help"])
    words = capsys.readouterr().out.replace(",", " ").split()
    assert [word for word in words if word.startswith("--") and "_" in word] == []
    assert {"--max-steps", "--per-device-train-batch-size", "--bf16", "--config"} <= set(words)
    assert "None)" not in words


def test_the_arguments_of_a_run_are_settings(tiny_bert: str, toy_sst2: str, tmp_path: Path) -> None:
    """They name everything, and the run that they make is the same."""
    flags = ["--model", tiny_bert, "--task", "sst2", "--data-dir", toy_sst2, "--device", "cpu", "--batch-size", "8"]
    flags += ["--max-length", "16", "--max-steps", "3", "--search-steps", "3", "--early-bird-interval", "1"]
    assert main(["finetune", *flags, "--output-dir", str(tmp_path / "first")]) == 0
    file = str(tmp_path / "first" / "arguments.json")
    assert main(["finetune", "--config", file, "--output-dir", str(tmp_path / "second")]) == 0
    first, second = (json.loads((tmp_path / run / "arguments.json").read_text()) for run in ("first", "second"))
    assert first | {"output_dir": second["output_dir"]} == second
    for name in ("ticket.json", "model/model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
