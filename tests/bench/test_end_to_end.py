import json

import pytest

from bench import end_to_end, provenance
from bench.report import report, tables


@pytest.fixture
def arguments(tiny_bert, toy_sst2, tmp_path):
    return [
        "--model", tiny_bert, "--task", "sst2", "--data-dir", toy_sst2, "--output-dir", str(tmp_path / "runs"),
        "--batch-size", "8", "--max-length", "16", "--max-steps", "2", "--search-steps", "2", "--head-ratio", "0.25",
        "--methods", "dense", "earlybert", "--seeds", "1", "--device", "cpu",
    ]  # fmt: skip


def test_runs_are_recorded_and_continued(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(provenance, "commit", lambda: "first")
    assert end_to_end.main([*arguments, "--kernels", "off"]) == 0
    monkeypatch.setattr(provenance, "commit", lambda: "second")
    capsys.readouterr()
    assert end_to_end.main([*arguments, "--kernels", "off", "auto"]) == 0
    printed = capsys.readouterr().out
    path = tmp_path / "runs" / "end_to_end.json"
    result = json.loads(path.read_text())
    assert result["commit"] == "first, second"
    rows = result["comparison"]["rows"]
    assert [(row["method"], row["kernels"]) for row in rows] == [
        ("dense", "off"), ("dense", "auto"), ("earlybert", "off"), ("earlybert", "auto"),
    ]  # fmt: skip
    for start in ("| stock transformers, dense |", "| this library, earlybert |", "Task sst2, model "):
        assert start in printed
    assert "seeds 1:" in printed
    report.main([str(path), "--plots", str(tmp_path)])
    assert capsys.readouterr().out.split("\n![")[0].strip() in printed
    assert (tmp_path / "end_to_end-end_to_end.png").exists()


def test_runs_of_another_program_have_an_unknown_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "commit", lambda: "mine")
    run = tmp_path / "dense-off-seed1"
    run.mkdir()
    (run / "metrics.json").write_text("{}")
    assert end_to_end._note_commit(tmp_path, anew=False) == ["unknown", "mine"]
    assert end_to_end._note_commit(tmp_path, anew=False) == ["unknown", "mine"]
    assert end_to_end._note_commit(tmp_path, anew=True) == ["mine"]


def test_a_usage_error_is_passed_on(arguments, capsys):
    assert end_to_end.main([*arguments, "--methods", "dense-short"]) == 2
    assert "dense-short would be dense" in capsys.readouterr().err


def test_the_report_refuses_other_files(tmp_path):
    with pytest.raises(ValueError, match="expected what a benchmark wrote"):
        list(report.sections({"kind": "recipe"}))


@pytest.mark.parametrize("content", ["[]", "3", "{", '{"kind": "recipe"}', "\xff"])
def test_a_report_of_something_else_is_one_line(tmp_path, capsys, content):
    path = tmp_path / "other.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(SystemExit) as exit:
        report.main([str(path)])
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and said.count(str(path)) == 1 and ": expected " in said


def test_the_table_has_no_empty_column_and_says_warnings(arguments, tmp_path, capsys):
    assert end_to_end.main([*arguments, "--kernels", "auto", "--learning-rate", "10", "--max-steps", "8"]) == 0
    printed = capsys.readouterr().out.split("Task sst2, model ")[-1]
    assert "| this library, dense |" in printed
    assert "of stock dense" not in printed and tables.NONE not in printed
    assert "\ndense-auto-seed1: train: the loss ended at " in printed


def test_a_report_of_a_file_that_is_not_there(capsys):
    with pytest.raises(SystemExit) as exit:
        report.main(["/nowhere.json"])
    assert exit.value.code == 2
    assert "/nowhere.json: no such file" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as exit:
        end_to_end.main(["--output-dir", str(tmp_path / "file" / "runs")])
    assert exit.value.code == 2
    assert "file/runs: Not a directory" in capsys.readouterr().err
