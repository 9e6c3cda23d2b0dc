"""The files of a run: whose they are, whether they are whole, and what is said when they cannot be written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from earlybert import FinetuneArguments, files, finetune
from earlybert.cli import main
from earlybert.errors import Interrupted, OutputExistsError, UsageError
from earlybert.files import replacing, write_bytes
from earlybert.programs.run import Run
from earlybert.run_directory import RunDirectory
from earlybert.training.loop import TrainingLoop

Make = Callable[..., FinetuneArguments]
ARGUMENTS = {"model": "m", "task": "sst2", "method": "dense"}


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    first, second = (RunDirectory(tmp_path / "run") for _ in range(2))
    with first.released():
        first.start(ARGUMENTS, resume=False)
        for resume, overwrite in ((False, False), (False, True), (True, False)):  # told before anything is loaded
            with pytest.raises(OutputExistsError, match="another process is writing here"):
                second.check(ARGUMENTS, resume=resume, overwrite=overwrite)
        for options in ({"resume": False, "overwrite": True}, {"resume": True}):
            with pytest.raises(OutputExistsError, match="another process is writing here"):
                second.start(ARGUMENTS, **options)
        assert json.loads(first.arguments.read_text()) == ARGUMENTS
    with second.released():
        second.start(ARGUMENTS, resume=True)


def test_a_run_that_has_been_written_since_the_check_is_not_replaced(tmp_path: Path) -> None:
    first, second = (RunDirectory(tmp_path / "run") for _ in range(2))
    second.check(ARGUMENTS, resume=False, overwrite=False)
    with first.released():
        first.start(ARGUMENTS, resume=False)
        first.finish({"method": "dense"})
    with second.released(), pytest.raises(OutputExistsError, match="holds a finished run"):
        second.start(ARGUMENTS, resume=False)


@pytest.mark.parametrize("process", ["finetune", "another"])
def test_two_runs_at_once(arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: str) -> None:
    other = RunDirectory(tmp_path / "run")
    if process == "another":
        other.start(ARGUMENTS, resume=False)
        with other.released(), pytest.raises(OutputExistsError):
            finetune(arguments(overwrite_output_dir=True))
        return
    train_step = TrainingLoop._train_step

    def second_start(loop: TrainingLoop, batches: list[list[int]]) -> None:
        if loop.step == 1:
            with pytest.raises(OutputExistsError, match="another process is writing here"):
                other.start(ARGUMENTS, resume=False, overwrite=True)
        train_step(loop, batches)

    monkeypatch.setattr(TrainingLoop, "_train_step", second_start)
    finetune(arguments())
    RunDirectory(tmp_path / "run").check_sums()


@pytest.mark.parametrize("name", ["arguments.json", "ticket.json", "gates.safetensors", "metrics.json", "model"])
def test_a_finished_run_whose_files_changed_is_not_echoed(
    arguments: Make, finished: Make, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    finished()
    assert finetune(arguments(resume=True))["method"] == "earlybert"
    path = tmp_path / "run" / name
    if name == "model":
        path = path / "model.safetensors"
    content = path.read_bytes()
    at = content.rindex(b"0" if path.suffix == ".json" else content[-1:])
    path.write_bytes(content[:at] + (b"1" if path.suffix == ".json" else bytes([content[at] ^ 1])) + content[at + 1 :])
    if name != "arguments.json":  # which is compared with the arguments first
        with pytest.raises(UsageError, match=f"{path.name} is not as the run wrote it"):
            finetune(arguments(resume=True))
    assert main(["verify", str(tmp_path / "run")]) in (1, 2)
    said = capsys.readouterr()
    assert f"{path.name} is not as the run wrote it" in said.out or path.name in said.err
    path.unlink()
    with pytest.raises(UsageError, match="no such file"):
        RunDirectory(tmp_path / "run").check_sums()


@pytest.mark.parametrize("content", [b"", b"the first line", b"a  b\n", b"\xff\xfe\x00"])
def test_checksums_that_are_not_whole_prove_nothing(
    arguments: Make, finished: Make, tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    finished()
    sums = tmp_path / "run" / "SHA256SUMS"
    sums.write_bytes(sums.read_bytes().splitlines(keepends=True)[0] if content == b"the first line" else content)
    with pytest.raises(UsageError, match="found only a part, or something else"):
        finetune(arguments(resume=True))
    assert main(["verify", str(tmp_path / "run")]) == 1
    assert "FAILED" in capsys.readouterr().out
    sums.unlink()
    with pytest.raises(UsageError, match="those of earlier versions do not have"):
        finetune(arguments(resume=True))


@pytest.mark.parametrize(("name", "command"), [("gates.safetensors", "draw"), ("metrics.json", "draw"),
                                               ("ticket.json", "plot"), ("metrics.json", "plot"),
                                               ("model/model.safetensors", "predict"),
                                               ("model/config.json", "evaluate")])  # fmt: skip
def test_what_reads_a_finished_run_checks_it(
    finished: Make, toy_sst2: str, tmp_path: Path, name: str, command: str, caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    finished()
    path = tmp_path / "run" / name
    dev, output = f"{toy_sst2}/dev.tsv", [str(tmp_path / "t.jsonl"), "--overwrite"]
    others = {"draw": output, "plot": [], "predict": [dev, *output], "evaluate": [dev]}
    argv = [command, str(tmp_path / "run"), *others[command]]
    assert main(argv) == 0
    content = path.read_bytes()
    if path.suffix == ".json":
        path.write_bytes(content.replace(b"\n", b" \n", 1))
    else:
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    assert main(argv) == 2
    assert f"{name} is not as the run wrote it" in capsys.readouterr().err
    (tmp_path / "run" / "SHA256SUMS").unlink()
    assert main(argv) == 0
    assert any("its files are taken as they are" in message for message in caplog.messages)


@pytest.mark.parametrize("what", ["cut", "empty", "flipped", "other run", "no checkpoint"])
def test_a_checkpoint_that_is_not_the_runs_is_refused(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def interrupted(**changes: object) -> Path:
        step = TrainingLoop._train_step
        with monkeypatch.context() as patch:
            patch.setattr(TrainingLoop, "_train_step", lambda *a: step(*a) or signal.raise_signal(signal.SIGINT))
            with pytest.raises(Interrupted):
                finetune(arguments(method="dense", **changes))
        return Path(arguments(**changes).output_dir) / "checkpoint.pt"

    path = interrupted()
    content = path.read_bytes()
    if what == "other run":
        path.write_bytes(interrupted(output_dir=str(tmp_path / "other"), seed=7).read_bytes())
    elif what == "no checkpoint":
        torch.save([1], path)
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"cut": content[:middle], "empty": b"", "flipped": flipped}[what])
    torn = what in ("cut", "empty", "flipped")
    with pytest.raises(UsageError, match="is torn, or no checkpoint; the run" if torn else "of another run, or of"):
        finetune(arguments(method="dense", resume=True))
    path.write_bytes(content)
    assert finetune(arguments(method="dense", resume=True))["steps"]["train"] == 12


def test_a_run_that_another_process_finishes_while_this_one_loads_is_left_alone(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Run._load_model
    expected = {}

    def load_late(run: Run) -> torch.nn.Module:
        with monkeypatch.context() as patch:
            patch.setattr(Run, "_load_model", load)
            expected.update(finetune(arguments(method="dense")))
        return load(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_load_model", load_late)
        assert finetune(arguments(method="dense", resume=True)) == expected
    RunDirectory(tmp_path / "run").check_sums()


def test_the_checksums_are_those_of_sha256sum(finished: Make, tmp_path: Path) -> None:
    finished()
    lines = (tmp_path / "run" / "SHA256SUMS").read_text().splitlines()
    sums = dict(reversed(line.split("  ")) for line in lines)
    assert {"arguments.json", "metrics.json", "ticket.json", "gates.safetensors", "model/model.safetensors"} <= {*sums}
    for name, digest in sums.items():
        assert hashlib.sha256((tmp_path / "run" / name).read_bytes()).hexdigest() == digest


def test_all_files_have_the_permissions_of_the_umask(arguments: Make, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        finetune(arguments(max_steps=1))
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != ".lock"]
    assert len(files) > 7
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}


def test_writing_follows_links_and_leaves_nothing_behind(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    with pytest.raises(IsADirectoryError), replacing(target) as partial:
        (partial.write_text("half"), tmp_path.write_text(""))
    assert target.read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"target", "link"}
    (tmp_path / "link.partial").symlink_to(target)
    write_bytes(tmp_path / "link", b"newer")
    (tmp_path / "other.partial").symlink_to(target)
    write_bytes(tmp_path / "other", b"else")
    assert target.read_text() == "newer"
    assert not (tmp_path / "other").is_symlink()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        write_bytes(tmp_path / "loop", b"")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(OutputExistsError, match="no file is written over"):
            write_bytes(path, b"")


@pytest.mark.parametrize("what", ["folder", "pipe"])
def test_draw_writes_over_files_alone(
    finished: Make, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(max_steps=1)
    target = tmp_path / what
    if what == "folder":
        target.mkdir()
    else:
        os.mkfifo(target)
    assert main(["draw", str(tmp_path / "run"), str(target), "--overwrite"]) == 2
    assert "no file is written over" in capsys.readouterr().err
    assert not target.is_file()


@pytest.mark.parametrize("name", ["gates.safetensors", "ticket.json", "metrics.json", "arguments.json"])
def test_draw_does_not_write_over_a_runs_own_files(
    finished: Make, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(max_steps=1)
    assert main(["draw", str(tmp_path / "run"), str(tmp_path / "run" / name), "--overwrite"]) == 2
    assert "a file of the run in" in capsys.readouterr().err
    RunDirectory(tmp_path / "run").check_sums()
    assert main(["draw", str(tmp_path / "run"), str(tmp_path / "run" / "smaller.json")]) == 0


def test_whatever_stands_in_the_place_of_a_runs_files_is_replaced(arguments: Make, tmp_path: Path) -> None:
    finetune(arguments(method="dense", max_steps=1))
    run, kept = tmp_path / "run", tmp_path / "kept"
    kept.mkdir()
    (kept / "thesis.tex").touch()
    for name in ("SHA256SUMS", "metrics.json"):
        (run / name).unlink()
        (run / name).mkdir()
    for put in (lambda path: path.symlink_to(kept), lambda path: path.touch()):
        files.remove(run / "model")
        put(run / "model")
        finetune(arguments(method="dense", max_steps=1, overwrite_output_dir=True))
        RunDirectory(run).check_sums()
        assert not (run / "model").is_symlink()
    assert [path.name for path in kept.iterdir()] == ["thesis.tex"]


def test_a_full_disk_is_named(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def save(state: object, file: object) -> None:
        file.write(b"some")
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            raise RuntimeError("unexpected pos")  # as torch does while it closes the file

    args = arguments(method="dense")
    flags = ["--model", args.model, "--task", "sst2", "--data-dir", args.data_dir, "--method", "dense"]
    flags += ["--output-dir", args.output_dir, "--max-length", "16", "--max-steps", "2", "--device", "cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        assert main(["finetune", *flags]) == 1
    assert "checkpoint.pt: No space left on device" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "arguments.json"}
    assert main(["finetune", *flags, "--resume"]) == 0


@pytest.mark.parametrize("left", ["arguments.json.partial", "checkpoint.pt.partial", "metrics.json.partial"])
def test_what_an_interrupted_write_has_left_blocks_no_folder(arguments: Make, tmp_path: Path, left: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / left).touch()
    finetune(arguments(method="dense", max_steps=1))


def test_torn_arguments_can_be_overwritten_where_all_else_is_a_runs(arguments: Make, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "arguments.json").touch()
    with pytest.raises(UsageError, match="arguments.json: expected JSON.*begun anew, with --overwrite-output-dir"):
        finetune(arguments(resume=True))
    finetune(arguments(method="dense", max_steps=1, overwrite_output_dir=True))
    (run / "arguments.json").write_text("")
    (run / "thesis.tex").touch()
    with pytest.raises(OutputExistsError, match="which are no run's"):
        finetune(arguments(overwrite_output_dir=True))


@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"method": "dense"}'])
def test_metrics_that_are_none(finished: Make, tmp_path: Path, content: str, capsys: pytest.CaptureFixture) -> None:
    finished(method="dense", max_steps=1)
    (tmp_path / "run" / "metrics.json").write_text(content)
    for command in ("plot", "verify"):
        assert main([command, str(tmp_path / "run")]) == 2
        assert "expected the metrics of a run" in capsys.readouterr().err
