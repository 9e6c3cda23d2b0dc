"""Runs transformers' own common model tests on converted models and compares what fails with what fails on stock ones.

    python tests/peer/run.py

The tests come with transformers' source distribution on PyPI, which is downloaded once into build/peer. A difference
from stock, sub-tests included, is an error unless it is in `KNOWN`, which says why.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

VERSION = "5.23.0"
ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "peer"
VARIANTS = ("converted", "gated", "masked", "compact")

#: What may fail on a changed model and not on a stock one, by a part of its name and of its message, and why.
KNOWN = {
    ("test_retain_grad_hidden_states_attentions", "None"): "attention weights are computed beside the output",
    ("pad_left", "pad on the right"): "a head that reads the pooled token refuses rows that begin with padding",
}

#: What the common tests import and the distribution does not have: (module, names).
STAND_INS = (
    ("tests/exporters/test_export.py", ("ExportTesterMixin",)),
    ("tests/generation/test_utils.py", ("GenerationTesterMixin",)),
)


def main() -> int:
    """Runs every variant; returns 1 if one differs from stock in a way that is not known, or no more in a known one."""
    tests = fetch()
    stock = outcomes(tests, "stock")
    wrong = 0
    for variant in VARIANTS:
        found, unmet = outcomes(tests, variant), set(KNOWN)
        lost = {name: "was not run" for name in stock.keys() - found.keys() if "[" not in name}  # or a sub-test
        for name, said in sorted({**found, **lost}.items()):
            if said is None or stock.get(name) is not None:
                continue
            known = next((key for key in KNOWN if key[0] in name and key[1] in said), None)
            wrong += known is None
            unmet.discard(known)
            print(f"{variant}: {name}: {KNOWN[known] if known else 'DIFFERS: ' + said}")
        wrong += len(unmet)  # the list is out of date, or the models were not changed
        for part, _ in unmet:
            print(f"{variant}: {part}: DIFFERS: is known to differ from stock and does not")
    print(f"{wrong} differences from stock that are not known")
    return int(wrong > 0)


def fetch() -> Path:
    """Downloads and unpacks the tests, and puts empty mixins in the place of those that are not there."""
    folder = CACHE / f"transformers-{VERSION}"
    if not (folder / "complete").exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        command += ["--no-build-isolation", "--dest", str(CACHE), f"transformers=={VERSION}"]
        subprocess.run(command, check=True)
        with tarfile.open(CACHE / f"transformers-{VERSION}.tar.gz") as archive:
            members = [member for member in archive if "/tests/" in member.name]
            archive.extractall(CACHE, members, filter="data")
        for file, names in STAND_INS:
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"class {name}:\n    pass\n" for name in names))
        for package in {path.parent for path in folder.glob("tests/**/*.py")}:
            (package / "__init__.py").touch()
        (folder / "complete").touch()
    return folder


def outcomes(tests: Path, variant: str) -> dict[str, str | None]:
    """Of every test None if it passed, else the first line of why it failed or was skipped.

    Sub-tests that did not pass are there as well, by the test's name with their parameters.
    """
    report = CACHE / f"{variant}.xml"
    report.unlink(missing_ok=True)
    paths = os.pathsep.join([str(tests), str(ROOT), str(ROOT / "python")])
    environment = {**os.environ, "PYTHONPATH": paths, "EARLYBERT_PEER": variant, "HF_HUB_OFFLINE": "1"}
    settings = CACHE / "pytest.ini"  # and not the project's
    settings.write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(settings), "--noconftest", "-n", "logical"]
    command += [f"--junitxml={report}", "--tb=line", str(ROOT / "tests" / "peer" / "models.py")]
    done = subprocess.run(command, env=environment, cwd=CACHE, capture_output=True, text=True, check=False)
    if not report.exists() or done.returncode not in (0, 1):
        raise SystemExit(f"{variant}: the tests did not run:\n{done.stdout}\n{done.stderr}")
    print(f"{variant}: {done.stdout.strip().splitlines()[-1]}")
    found: dict[str, str | None] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        test = f"{case.get('classname').split('.')[-1]}.{case.get('name')}"
        found.setdefault(test, None)
        for kind in ("failure", "error", "skipped"):
            for bad in case.iter(kind):
                message = (bad.get("message") or "").splitlines() or [""]
                # A sub-test is a case of the same name, told by what its message begins with.
                subtest = message[0].split("]")[0] + "]" if message[0].startswith(("[", "(")) else ""
                found[test + subtest.replace("Compact", "")] = f"{kind}: {message[0][:200]}"
    return found


if __name__ == "__main__":
    sys.exit(main())
