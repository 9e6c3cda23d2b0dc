import json

import pytest

from bench import end_to_end, record, report


@pytest.fixture
def arguments(tiny_bert, toy_sst2, tmp_path):
    return [
        "--model", tiny_bert, "--task", "sst2", "--data-dir", toy_sst2, "--output-dir", str(tmp_path / "runs"),
        "--batch-size", "8", "--max-length", "16", "--max-steps", "2", "--search-steps", "2", "--head-ratio", "0.25",
        "--methods", "dense", "earlybert", "--seeds", "1", "--device", "cpu",
    ]  # fmt: skip


def test_runs_are_recorded_and_continued(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record, "commit", lambda: "first")
    assert end_to_end.main([*arguments, "--kernels", "off"]) == 0
    monkeypatch.setattr(record, "commit", lambda: "second")
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
    monkeypatch.setattr(record, "commit", lambda: "mine")
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
