"""Jobs under a clock: what is kept whenever they end."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from bench import jobs
from bench.jobs import Job, Runner

PYTHON = sys.executable
#: A program that says when it has begun, by a file.
BEGUN = "import sys, time, signal, pathlib; pathlib.Path(sys.argv[1]).write_text('begun'); print('hello', flush=True); "


@pytest.fixture
def runner(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "GRACE", 2.0)
    monkeypatch.setattr(jobs, "_LEAST", 0.5)
    (tmp_path / "work").mkdir()
    return Runner(tmp_path / "work", tmp_path / "first", dict(os.environ), tmp_path)


def job(name, code, seconds=30.0, **options):
    return Job(name, (PYTHON, "-c", BEGUN + code, "{work}/{name}.txt"), seconds, **options)


def kept(runner):
    with tarfile.open(runner.results.with_suffix(".tar.gz")) as tar:
        return {member.name: tar.extractfile(member).read().decode() for member in tar}


def run(runner, *all_jobs, seconds=60.0, at_once=1):
    return runner.run(all_jobs, time.monotonic() + seconds, at_once)


def test_what_jobs_write_is_kept_after_each(runner):
    look = f"import tarfile; print(tarfile.open({str(runner.results) + '.tar.gz'!r}).getnames())"
    done, failed, looked = run(runner, job("one", ""), job("two", "raise SystemExit(3)"), job("three", look))
    assert [done.status, failed.status, looked.status] == [0, 3, 0]
    assert [done.failed, failed.failed] == [False, True]
    assert "'one.log', 'one.txt', 'two.log', 'two.txt'" in kept(runner)["three.log"]
    state = json.loads(runner.results.with_suffix(".json").read_text())
    assert [each["failed"] for each in state["jobs"]] == [False, True, False]
    assert not list(runner.results.parent.glob("*.new"))


def test_a_job_out_of_time_is_interrupted_and_can_write(runner):
    code = "\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('written at the end')"
    (outcome,) = run(runner, job("slow", code, seconds=5.0))
    assert outcome.timed_out and outcome.status == 0
    assert kept(runner)["slow.log"] == "hello\nwritten at the end\n"


def test_a_job_that_does_not_listen_is_killed_by_its_end(runner):
    begin = time.monotonic()
    (outcome,) = run(runner, job("deaf", "signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)", seconds=5.0))
    assert outcome.failed and outcome.timed_out and outcome.status == -signal.SIGKILL
    assert time.monotonic() - begin < 7 and kept(runner)["deaf.log"] == "hello\n"


def test_what_a_job_leaves_behind_is_killed(runner):
    code = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid)"
    run(runner, job("parent", code))
    pid = int(kept(runner)["parent.log"].split()[-1])
    status = Path(f"/proc/{pid}/status")
    for _ in range(50):
        if not status.exists() or "zombie" in status.read_text():
            return
        time.sleep(0.1)
    pytest.fail("it runs on")


def test_jobs_side_by_side_and_those_that_are_not_begun(runner):
    outcomes = run(runner, *(job(f"job-{n}", "time.sleep(2)", seconds=60) for n in range(2)), seconds=55, at_once=2)
    assert [outcome.status for outcome in outcomes] == [0, 0]
    (late,) = run(runner, job("late", ""), seconds=0.1)
    assert late.status is None and late.failed and str(late) == "late: not begun, no time was left"


def test_a_file_that_is_gone_when_it_is_to_be_kept(runner, monkeypatch):
    read_bytes = Path.read_bytes

    def gone(path):
        if path.name == "one.txt":
            path.unlink()
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", gone)
    (outcome,) = run(runner, job("one", ""))
    assert outcome.status == 0 and set(kept(runner)) == {"one.log"}


def test_results_that_cannot_be_written_end_nothing(runner, capsys):
    runner.results = runner.results.parent / "none" / "first"
    outcomes = run(runner, job("one", ""), job("two", ""))
    assert [outcome.status for outcome in outcomes] == [0, 0]
    assert "the results could not be kept" in capsys.readouterr().out


def test_a_command_that_is_not_there(runner):
    (outcome,) = run(runner, Job("none", ("/no/such/program",), 5))
    assert outcome.status == 127 and "No such file" in kept(runner)["none.log"]


def test_pytest_without_tests_is_a_failure_unless_that_is_said(runner):
    outcomes = run(runner, job("a", "sys.exit(5)"), job("b", "sys.exit(5)", none_is_fine=True))
    assert [outcome.failed for outcome in outcomes] == [True, False]


def test_long_logs_lose_their_middle(runner, monkeypatch):
    monkeypatch.setattr(jobs, "_LOG", 100)
    run(runner, job("long", "print('a' * 1000 + 'z')"))
    assert len(kept(runner)["long.log"]) == 105 and kept(runner)["long.log"].endswith("az\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ending_the_runner_ends_its_jobs(tmp_path, number):
    """Also where a shell has started it in the background, so that it ignores SIGINT until it runs a job."""
    (tmp_path / "work").mkdir()
    code = f"""
import os, pathlib, signal, sys, time
from bench.jobs import Job, Runner
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(9))
root = pathlib.Path({str(tmp_path)!r})
sleep = Job("sleep", (sys.executable, "-c", {BEGUN + "time.sleep(60)"!r}, "{{work}}/pid"), 60)
Runner(root / "work", root / "first", dict(os.environ), root).run([sleep], time.monotonic() + 60)
"""
    ignore = "trap '' INT; exec \"$@\""
    with subprocess.Popen(["bash", "-c", ignore, "-", PYTHON, "-c", code], stderr=subprocess.PIPE) as process:
        for _ in range(300):
            if (tmp_path / "work" / "pid").exists():
                break
            time.sleep(0.1)
        begin = time.monotonic()
        process.send_signal(number)
        process.wait(30)
    assert process.returncode != 0 and time.monotonic() - begin < 20
    assert json.loads((tmp_path / "first.json").read_text())["jobs"][0]["status"] == -signal.SIGKILL
